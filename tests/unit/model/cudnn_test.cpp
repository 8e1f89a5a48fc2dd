// The CPU's attention against cuDNN's.
#include "tests/cudnn.h"

using namespace ff;

TEST_CASE("attention and its gradients are cuDNN's", "[parity]") {
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16})
    test::compare_attention_with_cudnn(Device{}, dtype);
}
