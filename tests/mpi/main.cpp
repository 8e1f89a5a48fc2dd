// Catch's main on every rank of an MPI run. What fails on one rank fails the run.
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>

#include "tests/mpi/ranks.h"

namespace {
std::unique_ptr<ff::Group> g_world;
}

const ff::Group& ff::test::world() { return *g_world; }

int main(int argc, char** argv) {
  g_world = std::make_unique<ff::Group>(ff::launch_ranks(60));
  const int failed = Catch::Session().run(argc, argv);
  const int all = int(g_world->sum(failed, "failed tests"));
  g_world.reset();
  return all ? 1 : 0;
}
