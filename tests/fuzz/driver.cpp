// A bounded, deterministic fuzzer: mutates seeds, keeps inputs that end in a new way, reports the
// first that breaks the target. NAME [-n ITERATIONS] [-t SECONDS] [-s SEED] | NAME FILE... (runs
// the files).
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <set>

#include "tests/fuzz/target.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

constexpr size_t kMaxInput = 1 << 16, kMaxCorpus = 2000;

std::string g_input;
long g_iteration = 0;

/// Called when the target died: keeps the input that did it.
void save_input() {
  std::ofstream("fuzz-failure.bin", std::ios::binary) << g_input;
  std::fprintf(stderr, "fuzz: iteration %ld failed; its input is in fuzz-failure.bin\n",
               g_iteration);
}

extern "C" void on_signal(int signal) {
  save_input();
  std::_Exit(128 + signal);
}

void run_target() {
  try {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(g_input.data()), g_input.size());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "fuzz: %s\n", e.what());
    save_input();
    std::exit(1);
  }
}

class Mutator {
 public:
  Mutator(uint64_t seed, std::vector<std::string> words)
      : random_(seed), words_(std::move(words)) {}

  size_t below(size_t n) { return n ? random_() % n : 0; }

  void mutate(std::string& s, const std::string& other) {
    for (size_t n = 1 + below(4); n > 0; --n) mutate_once(s, other);
    if (s.size() > kMaxInput) s.resize(kMaxInput);
  }

 private:
  void mutate_once(std::string& s, const std::string& other) {
    const size_t at = below(s.size() + 1), length = below(std::min<size_t>(s.size() - at, 64) + 1);
    switch (below(10)) {
      case 0:
        if (at < s.size()) s[at] ^= char(1 << below(8));
        break;
      case 1:
        if (at < s.size()) s[at] = char(below(256));
        break;
      case 2: {  // an integer of 1 to 8 bytes at the edge of its type, or near it
        const uint64_t value = (uint64_t(below(2)) << below(64)) + below(5) - 2;
        const size_t bytes = std::min<size_t>(size_t(1) << below(4), s.size() - at);
        std::memcpy(s.data() + at, &value, bytes);
        break;
      }
      case 3:
        s.erase(at, length);
        break;
      case 4:
        s.insert(at, s.substr(below(s.size() + 1), length));
        break;
      case 5:
        s.insert(at, 1 + below(8), char(below(256)));
        break;
      case 6:
        s.resize(at);
        break;
      case 7:
        if (!words_.empty()) s.insert(at, words_[below(words_.size())]);
        break;
      case 8:
        if (!words_.empty()) {
          const std::string& word = words_[below(words_.size())];
          s.replace(at, std::min(word.size(), s.size() - at), word);
        }
        break;
      case 9:
        s.replace(at, std::string::npos, other.substr(below(other.size() + 1)));
        break;
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> words_;
};

/// The kind of an error: its text without numbers and without what was quoted from the input.
std::string kind_of(std::string error) {
  const size_t first = error.find('\''), last = error.rfind('\'');
  if (first != std::string::npos) error.erase(first, last - first);
  std::erase_if(error, [](char c) { return c >= '0' && c <= '9'; });
  return error;
}

}  // namespace

int main(int argc, char** argv) {
  long iterations = 20000, seconds = 20;
  uint64_t seed = 1;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag.size() == 2 && flag[0] == '-' && i + 1 < argc) {
      const long value = std::atol(argv[++i]);
      if (flag == "-n") iterations = value;
      if (flag == "-t") seconds = value;
      if (flag == "-s") seed = uint64_t(value);
    } else {
      files.push_back(flag);
    }
  }
  if (__sanitizer_set_death_callback)
    __sanitizer_set_death_callback(save_input);
  else
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) std::signal(signal, on_signal);
  std::signal(SIGALRM, on_signal);

  for (const std::string& file : files) {
    std::ifstream in(file, std::ios::binary);
    g_input.assign(std::istreambuf_iterator<char>(in), {});
    run_target();
    std::printf("%s: %s\n", file.c_str(),
                ff::g_fuzz_outcome.empty() ? "accepted" : ff::g_fuzz_outcome.c_str());
  }
  if (!files.empty()) return 0;

  const std::vector<std::string> seeds = ff::fuzz_seeds();
  for (const std::string& input : seeds) {
    g_input = input;
    run_target();
    if (!ff::g_fuzz_outcome.empty()) {
      std::fprintf(stderr, "fuzz: a seed is refused: %s\n", ff::g_fuzz_outcome.c_str());
      return 1;
    }
  }
  Mutator mutator(seed, ff::fuzz_words());
  std::vector<std::string> corpus = seeds, refused;
  std::set<std::string> kinds;
  long accepted = 0;
  const auto pick = [&](const std::vector<std::string>& from) {
    return from[mutator.below(from.size())];
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (g_iteration < iterations && std::chrono::steady_clock::now() < end) {
    ++g_iteration;
    const size_t from = mutator.below(4);
    g_input = pick(from < 2 ? seeds : from < 3 || refused.empty() ? corpus : refused);
    mutator.mutate(g_input, pick(corpus));
    alarm(10);  // longer than this is a hang
    run_target();
    const bool is_accepted = ff::g_fuzz_outcome.empty();
    accepted += is_accepted;
    // Changes that survive lead further away from the seeds.
    if (is_accepted && corpus.size() < kMaxCorpus) corpus.push_back(g_input);
    if (!is_accepted && kinds.insert(kind_of(ff::g_fuzz_outcome)).second)
      refused.push_back(g_input);
  }
  alarm(0);
  std::printf("fuzz: %ld inputs, %ld accepted, %zu kinds of errors\n", g_iteration, accepted,
              kinds.size());
  if (std::getenv("FUZZ_SHOW"))
    for (const std::string& kind : kinds) std::printf("  %s\n", kind.c_str());
  return 0;
}
