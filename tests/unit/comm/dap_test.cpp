// The tape's collectives: values, and gradients summed over the ranks, against one rank's.
#include "comm/dap.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <mutex>

#include "tests/unit/thread_ranks.h"

namespace ff::test {
namespace {

std::mutex g_mutex;  // Catch's assertions are for one thread at a time

Tensor numbers(const Dims& shape, double seed) {
  const Tensor t = Tensor::empty(shape, Dtype::f64);
  for (int64_t i = 0; i < t.numel(); ++i) t.data<double>()[i] = std::sin(seed + 1.7 * double(i));
  return t;
}

bool equal(const Tensor& a, const Tensor& b) {
  if (!(a.shape() == b.shape())) return false;
  const Tensor x = a.to(Dtype::f64).contiguous(), y = b.to(Dtype::f64).contiguous();
  for (int64_t i = 0; i < x.numel(); ++i)
    if (!(std::abs(x.data<double>()[i] - y.data<double>()[i]) <= 1e-12)) return false;
  return true;
}

#define CHECK_HERE(...)                  \
  do {                                   \
    const std::lock_guard lock(g_mutex); \
    CHECK(__VA_ARGS__);                  \
  } while (false)

/// A rank's own weights of what all ranks hold: the gradient that it sends back.
Tensor weights_of(int rank, const Dims& shape) { return numbers(shape, 10.0 * (1 + rank)); }

Tensor total_weights(int ranks, const Dims& shape) {
  const Tensor sum = Tensor::zeros(shape, Dtype::f64);
  for (int r = 0; r < ranks; ++r) {
    const Tensor w = weights_of(r, shape);
    for (int64_t i = 0; i < sum.numel(); ++i) sum.data<double>()[i] += w.data<double>()[i];
  }
  return sum;
}

}  // namespace

TEST_CASE("rows are dealt in runs that differ by one at most") {
  for (int64_t n : {0, 1, 3, 7, 12})
    for (int64_t parts : {1, 2, 3, 4, 8}) {
      int64_t at = 0;
      for (int64_t i = 0; i < parts; ++i) {
        const Range r = deal(n, parts, i);
        CHECK(r.start == at);
        CHECK((r.count == n / parts || r.count == n / parts + 1));
        at = r.end();
      }
      CHECK(at == n);
    }
}

TEST_CASE("gathering joins rows, and its backward sums what every rank made of them") {
  for (int ranks : {2, 3, 4})
    for (int axis : {0, 1}) {
      const Dims shape{7, 5, 3};
      const Tensor whole = numbers(shape, 1);
      on_ranks(ranks, [&](const Group& group) {
        const Dap dap(group);
        const Range rows = dap.mine(shape[axis]);
        Var x(whole.narrow(axis, rows.start, rows.count).clone());
        x.want_grad();
        Tape tape;
        const Var y = gather(dap, x, axis, shape[axis]);
        CHECK_HERE(equal(y.value(), whole));
        tape.backward({y}, {weights_of(dap.rank(), shape)});
        CHECK_HERE(
            equal(x.grad(), total_weights(ranks, shape).narrow(axis, rows.start, rows.count)));
      });
    }
}

TEST_CASE("a rank whose gradient is nothing still takes part in the backward") {
  const Dims shape{6, 2};
  on_ranks(3, [&](const Group& group) {
    const Dap dap(group);
    Var x(numbers({2, 2}, group.rank())), other(numbers({1}, 5));
    x.want_grad();
    other.want_grad();
    Tape tape;
    const Var y =
        checkpoint([&](const Vars& in) { return Vars{gather(dap, in[0], 0, 6)}; }, {x})[0];
    const Var z = checkpoint([](const Vars& in) { return Vars{in[0]}; }, {other})[0];
    // Rank 1 makes nothing of y.
    if (group.rank() == 1)
      tape.backward({z}, {numbers({1}, 1)});
    else
      tape.backward({y}, {weights_of(0, shape)});
    const Tensor w = weights_of(0, shape).narrow(0, 2 * group.rank(), 2).clone();
    for (int64_t i = 0; i < w.numel(); ++i) w.data<double>()[i] *= 2;
    CHECK_HERE(equal(x.grad(), w));
  });
}

TEST_CASE("unshard gives back the own rows of a gradient that the ranks share") {
  const Dims shape{5, 4};
  on_ranks(4, [&](const Group& group) {
    const Dap dap(group);
    const Range rows = dap.mine(5);
    const Tensor whole = numbers(shape, 2);
    Var x(whole.narrow(0, rows.start, rows.count).clone());
    x.want_grad();
    Tape tape;
    const Var y = unshard(dap, x, 0, 5);
    CHECK_HERE(equal(y.value(), whole));
    const Tensor share = numbers(shape, 3), all = share.clone();
    for (int64_t i = 0; i < all.numel(); ++i) all.data<double>()[i] *= 4;
    tape.backward({y}, {share});
    CHECK_HERE(equal(x.grad(), all.narrow(0, rows.start, rows.count)));
  });
}

TEST_CASE("a layout changes in parts, there and back") {
  for (int ranks : {2, 3, 4})
    for (int64_t parts : {1, 3})
      for (const auto& [from, to] : {std::pair(0, 1), std::pair(1, 0), std::pair(2, 0)}) {
        const Dims shape{7, 5, 6};
        const Tensor whole = numbers(shape, 1), weights = numbers(shape, 9);
        on_ranks(ranks, [&, from = from, to = to](const Group& group) {
          const Dap dap(group);
          const Range rows = dap.mine(shape[from]), columns = dap.mine(shape[to]);
          Var x(whole.narrow(from, rows.start, rows.count).clone());
          x.want_grad();
          Tape tape;
          const auto by_part = parts_of_rows(dap, shape[from], parts);
          Relayout change(dap, shape, from, to, by_part);
          for (const auto& part : by_part) {
            const Range own = part[size_t(dap.rank())];
            change.begin(view_of(x, [=, from = from](const Tensor& t) {
              return t.narrow(from, own.start - rows.start, own.count);
            }));
          }
          const Var y = change.await();
          CHECK_HERE(equal(y.value(), whole.narrow(to, columns.start, columns.count)));
          tape.backward({y}, {weights.narrow(to, columns.start, columns.count)});
          CHECK_HERE(equal(x.grad(), weights.narrow(from, rows.start, rows.count)));
        });
      }
}

TEST_CASE("rank 0's rows reach all, and it gets the sum of their gradients") {
  const Dims shape{1, 4};
  on_ranks(3, [&](const Group& group) {
    const Dap dap(group);
    const Tensor row = numbers(shape, 4);
    Var x(row.narrow(0, 0, group.rank() == 0 ? 1 : 0).clone());
    x.want_grad();
    Tape tape;
    const Var y = broadcast(dap, x, 1);
    CHECK_HERE(equal(y.value(), row));
    tape.backward({y}, {weights_of(group.rank(), shape)});
    if (group.rank() == 0) CHECK_HERE(equal(x.grad(), total_weights(3, shape)));
  });
}

TEST_CASE("a sum over the ranks has the same bits on each, in f32 too") {
  for (int ranks : {2, 3, 4}) {
    std::vector<Tensor> sums(static_cast<size_t>(ranks));
    on_ranks(ranks, [&](const Group& group) {
      const Dap dap(group);
      Var x(weights_of(group.rank(), {5, 3}));
      x.want_grad();
      Tape tape;
      const Var y = reduce(dap, x);
      CHECK_HERE(equal(y.value(), total_weights(ranks, {5, 3})));
      tape.backward({y}, {weights_of(group.rank(), {5, 3})});
      CHECK_HERE(equal(x.grad(), total_weights(ranks, {5, 3})));
      const Tensor small = weights_of(group.rank(), {1001}).to(Dtype::f32).clone();
      group.all_reduce(small, "sum").wait();
      sums[size_t(group.rank())] = small;
    });
    for (const Tensor& sum : sums)
      CHECK(std::memcmp(sum.raw(), sums[0].raw(), size_t(sum.numel()) * 4) == 0);
  }
}

TEST_CASE("bytes are counted, and groups are cut from groups") {
  on_ranks(4, [&](const Group& world) {
    const Group pair = world.part(world.rank() / 2 * 2, 2, 1);
    CHECK_HERE(pair.size() == 2);
    const int64_t before = world.received_bytes();
    const double sum = pair.sum(world.rank(), "sum");
    CHECK_HERE(sum == (world.rank() < 2 ? 1 : 5));
    CHECK_HERE(world.received_bytes() - before == 8);
    const Group stride = world.part(world.rank() % 2, 2, 2);
    const double other = stride.sum(world.rank(), "sum");
    CHECK_HERE(other == (world.rank() % 2 ? 4 : 2));
    const auto texts = world.gather_text(std::string(size_t(world.rank()), 'x'), "texts");
    CHECK_HERE(texts == std::vector<std::string>{"", "x", "xx", "xxx"});
  });
}

TEST_CASE("an error of one rank is thrown by all, with its name") {
  on_ranks(3, [&](const Group& world) {
    std::string said;
    bool tell = false;
    try {
      together(world, [&] {
        if (world.rank() == 1) fail(Exit::kInput, "no such file");
      });
    } catch (const SharedError& e) {
      said = e.what();
      tell = e.tell;
    }
    CHECK_HERE(said == "no such file (on rank 1, thread)");
    CHECK_HERE(tell == (world.rank() == 0));
  });
}

TEST_CASE("one rank alone is the identity") {
  const Dap dap;
  Var x(numbers({3, 2}, 1));
  CHECK(gather(dap, x, 0, 3).value().raw() == x.value().raw());
  CHECK(relayout(dap, x, 0, 1, 3).value().raw() == x.value().raw());
  CHECK(reduce(dap, x).value().raw() == x.value().raw());
  CHECK(broadcast(dap, x, 3).value().raw() == x.value().raw());
}

}  // namespace ff::test
