// The ranks that these tests were started as; every test runs on all of them.
#pragma once

#include "comm/dap.h"

namespace ff::test {

/// All of them; without mpirun one alone.
const Group& world();

}  // namespace ff::test
