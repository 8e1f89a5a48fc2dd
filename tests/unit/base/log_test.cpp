// The JSON log: one valid line a message, whatever the text; a failing disk stops nothing.
#include "core/base/log.h"

#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

using namespace ff;
namespace fs = std::filesystem;

namespace {

class JsonLog {
 public:
  JsonLog() : path_(fs::temp_directory_path() / cat("ff_log_", getpid(), ".jsonl")) {
    fs::remove(path_);
    set_quiet(true);
    set_json_log(path_);
  }
  ~JsonLog() {
    set_json_log("");
    set_quiet(false);
    fs::remove(path_);
  }
  std::vector<std::string> lines() const {
    std::ifstream in(path_);
    std::vector<std::string> all;
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

TEST_CASE("text as a JSON string") {
  CHECK(json_string("plain") == "\"plain\"");
  CHECK(json_string("a\"b\\c\n\t\x01\x7f") == "\"a\\\"b\\\\c\\u000a\\u0009\\u0001\\u007f\"");
  CHECK(json_string(std::string_view("\0", 1)) == "\"\\u0000\"");
  CHECK(json_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\xa7\xac") ==
        "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\xa7\xac\"");
  // Stray, cut off, overlong, a surrogate, beyond U+10FFFF.
  const std::string no = "\xef\xbf\xbd";
  CHECK(json_string("\xff") == "\"" + no + "\"");
  CHECK(json_string("a\xc3") == "\"a" + no + "\"");
  CHECK(json_string("\xe2\x82z") == "\"" + no + no + "z\"");
  CHECK(json_string("\xc0\xaf") == "\"" + no + no + "\"");
  CHECK(json_string("\xe0\x80\xaf") == "\"" + no + no + no + "\"");
  CHECK(json_string("\xed\xa0\x80") == "\"" + no + no + no + "\"");
  CHECK(json_string("\xf4\x90\x80\x80") == "\"" + no + no + no + no + "\"");
}

TEST_CASE("messages and events are lines of the log, notices while quiet too") {
  const JsonLog log;
  log_notice("first ", 1);
  log_event("target", "6KWC_1",
            {{"seconds", 1.5},
             {"residues", int64_t(191)},
             {"nan", std::numeric_limits<double>::quiet_NaN()},
             {"title", "say \"x\""}});
  log_message(Level::kProgress, "not in the log");
  const std::vector<std::string> lines = log.lines();
  REQUIRE(lines.size() == 2);
  std::string shape = lines[0];
  for (char& c : shape)
    if (c >= '0' && c <= '9') c = '0';
  CHECK(shape ==
        R"({"time": "0000-00-00T00:00:00.000Z", "level": "notice", "message": "first 0"})");
  const size_t level = lines[1].find("\"level\"");
  CHECK(lines[1].substr(level) ==
        R"("level": "target", "message": "6KWC_1", "seconds": 1.5, "residues": 191, "nan": null, )"
        R"("title": "say \"x\""})");
  set_json_log(log.path());
  log_notice("appended");
  CHECK(log.lines().size() == 3);
}

TEST_CASE("lines of several threads do not mix") {
  const JsonLog log;
  constexpr int kThreads = 4, kLines = 200;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < kLines; ++i) log_notice(std::string(300, 'x'));
    });
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::string> lines = log.lines();
  CHECK(lines.size() == kThreads * kLines);
  for (const std::string& line : lines)
    CHECK((line.starts_with("{\"time\": ") && line.ends_with("x\"}")));
}

TEST_CASE("a log that cannot be opened is an error, one that cannot be written is not") {
  CHECK_THROWS_WITH(set_json_log("/no/such/folder/log"), Catch::Contains("/no/such/folder/log"));
  CHECK_FALSE(has_json_log());
  const JsonLog log;
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit now{300, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &now);
  for (int i = 0; i < 10; ++i) log_notice(std::string(200, 'x'));
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  CHECK_FALSE(has_json_log());
  log_notice("the run goes on");
  CHECK(log.lines().size() <= 2);
}
