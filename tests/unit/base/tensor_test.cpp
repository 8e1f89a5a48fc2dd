// Tensor: views, copies, conversions and the count of memory.
#include "core/tensor/tensor.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

using namespace ff;

namespace {

Tensor counted(const Dims& shape) {
  const Tensor t = Tensor::empty(shape);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(i);
  return t;
}

}  // namespace

TEST_CASE("views share storage and never copy", "[tensor]") {
  const Tensor t = counted({2, 3, 4});
  REQUIRE(t.narrow(1, 1, 2).select(0, 1).select(0, 0).data<float>()[2] == 18);
  REQUIRE(t.transpose(0, 2).select(0, 3).select(0, 1).select(0, 1).item() == 19);
  REQUIRE(t.view({6, 4}).select(0, 5).data<float>() == t.data<float>() + 20);
  REQUIRE(t.view({2, -1}).shape() == Dims{2, 12});
  REQUIRE(t.transpose(0, 1).view({3, 2, 2, 2}).strides() == Dims{4, 12, 2, 1});
  REQUIRE_THROWS_AS(t.transpose(0, 1).view({6, 4}), Error);
  REQUIRE(t.narrow(0, 1, 1).view({12}).data<float>()[0] == 12);
  REQUIRE(t.unsqueeze(-1).expand(3, 5).strides() == Dims{12, 4, 1, 0});
  REQUIRE(Tensor::zeros({0, 3}).view({3, 0}).numel() == 0);
  REQUIRE(Tensor::scalar(3).view({1, 1}).rank() == 2);
}

TEST_CASE("copies follow strides and convert", "[tensor]") {
  const Tensor t = counted({3, 4});
  const Tensor c = t.transpose(0, 1).contiguous();
  REQUIRE(c.data<float>()[1] == 4);
  const Tensor wide = Tensor::zeros({4, 5}, Dtype::f64);
  wide.narrow(1, 1, 3).copy_from(t.transpose(0, 1));
  REQUIRE(wide.select(0, 2).select(0, 3).item() == 10);
  REQUIRE(wide.select(0, 2).select(0, 4).item() == 0);
  REQUIRE(t.to(Dtype::i32).data<int32_t>()[11] == 11);
}

TEST_CASE("bf16 rounds to nearest even and keeps NaN", "[tensor]") {
  REQUIRE(float(bf16(1.0f)) == 1.0f);
  REQUIRE(float(bf16(1.00390625f)) == 1.0f);       // halfway between 1 and 1 + 2^-7: to even
  REQUIRE(float(bf16(1.01171875f)) == 1.015625f);  // halfway: to even, upwards
  REQUIRE(std::isinf(float(bf16(3.4e38f))));
  REQUIRE(std::isnan(float(bf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST_CASE("memory is counted, and too much of it is an error", "[tensor]") {
  const int64_t before = memory_count().current;
  {
    const Tensor t = Tensor::empty({1000});
    REQUIRE(memory_count().current == before + 4000);
    REQUIRE(memory_count().peak >= before + 4000);
  }
  REQUIRE(memory_count().current == before);
  REQUIRE_THROWS_AS(Tensor::empty({int64_t(1) << 40, int64_t(1) << 40}), Error);
  REQUIRE_THROWS_AS(Tensor::empty({int64_t(1) << 52}), Error);
}

TEST_CASE("misuse is an error", "[tensor]") {
  const Tensor t = counted({2, 3});
  REQUIRE_THROWS_AS(t.narrow(1, 2, 2), Error);
  REQUIRE_THROWS_AS(t.size(2), Error);
  REQUIRE_THROWS_AS(t.data<int32_t>(), Error);
  REQUIRE_THROWS_AS(Tensor().raw(), Error);
  REQUIRE_THROWS_AS((Dims{1, 2, 3, 4, 5, 6, 7}), Error);
}
