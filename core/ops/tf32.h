// Products of f32 in less time on a GPU, on request.
#pragma once

namespace ff {

/// Whether a GPU may round the operands of f32 products to tf32, which has 10 bits of fraction, as
/// --precision tf32 asks for. Set before the first product; a CPU never does.
bool& tf32_products();

}  // namespace ff
