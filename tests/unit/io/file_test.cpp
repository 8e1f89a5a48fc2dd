// Reading bounded text and writing files atomically.
#include "io/file.h"

#include <sys/resource.h>
#include <unistd.h>
#include <zlib.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <set>

#include "core/base/error.h"
#include "tests/unit/io/scratch.h"

using namespace ff;
namespace fs = std::filesystem;

TEST_CASE("text files: plain, gzip, several gzip members, limits") {
  const Scratch scratch;
  const std::string text = "first line\nsecond\n";
  CHECK(read_text_file(scratch.write("plain", text), 18) == text);
  CHECK_THROWS_WITH(read_text_file(scratch.write("plain", text), 17),
                    Catch::Contains("more than 17 bytes"));
  CHECK(read_text_file(scratch.write("empty", ""), 10).empty());

  const std::string packed = gzip(text);
  CHECK(read_text_file(scratch.write("t.gz", packed), 18) == text);
  CHECK(read_text_file(scratch.write("no_suffix", packed + packed), 100) == text + text);
  for (size_t n = 2; n < packed.size(); ++n)
    CHECK_THROWS_AS(read_text_file(scratch.write("cut.gz", packed.substr(0, n)), 100), Error);
  std::string damaged = packed;
  damaged[packed.size() - 6] ^= 1;  // in the checksum
  CHECK_THROWS_WITH(read_text_file(scratch.write("bad.gz", damaged), 100),
                    Catch::Contains("damaged gzip"));
  // 16 MB of zeros in 16 KB.
  CHECK_THROWS_WITH(
      read_text_file(scratch.write("bomb.gz", gzip(std::string(16 << 20, '\0'))), 1 << 20),
      Catch::Contains("more than 1048576 bytes"));
  CHECK_THROWS_WITH(read_text_file(scratch / "none", 10), Catch::Contains("No such file"));
  CHECK_THROWS_WITH(read_text_file(scratch.path(), 10), Catch::Contains("Is a directory"));
}

TEST_CASE("lines end with LF, CRLF or CR") {
  std::string_view text = "a\nb\r\n\rc\n", line;
  std::vector<std::string> lines;
  while (next_line(text, line)) lines.emplace_back(line);
  CHECK(lines == std::vector<std::string>{"a", "b", "", "c"});
}

TEST_CASE("a file appears complete or not at all") {
  const Scratch scratch;
  const std::string path = scratch / "out.bin";
  {
    AtomicFile file(path);
    file.write("abandoned");
    CHECK(fs::exists(file.temporary_path()));
  }
  CHECK(scratch.names().empty());

  const std::string large(1 << 20, 'x');
  {
    AtomicFile file(path);
    file.write("head ");
    file.write(large);
    file.write_at(0, "HEAD", 4);
    file.write(" tail");
    CHECK(file.size() == int64_t(large.size()) + 10);
    CHECK_FALSE(fs::exists(path));
    file.commit();
  }
  CHECK(read_text_file(path, 1 << 22) == "HEAD " + large + " tail");
  CHECK(scratch.names() == std::vector<std::string>{"out.bin"});
}

TEST_CASE("places that cannot be written are refused") {
  const Scratch scratch;
  CHECK_THROWS_WITH(AtomicFile(scratch / "no/such/folder/x"), Catch::Contains("No such file"));
  CHECK_THROWS_WITH(AtomicFile(scratch.path()), Catch::Contains("is a folder"));
  CHECK_THROWS_WITH(AtomicFile("/dev/null"), Catch::Contains("no ordinary file"));
  AtomicFile(scratch / std::string(250, 'n')).commit();  // the temporary name is not longer
  CHECK(fs::exists(scratch / std::string(250, 'n')));
}

TEST_CASE("the temporaries that killed processes left are removed, of the named files only") {
  const Scratch scratch;
  const std::string name(250, 'n');
  {
    AtomicFile file(scratch / name);
    std::filesystem::copy_file(file.temporary_path(), file.temporary_path() + ".kept");
    std::filesystem::rename(file.temporary_path() + ".kept",
                            scratch / cat(".", name.substr(0, AtomicFile::kMostName), ".1-7.tmp"));
  }
  const std::set<std::string> kept = {".tmp",        "..tmp",          ".x.tmp", "x.1-2.tmp",
                                      ".x.1-2a.tmp", ".other.1-2.tmp", "x",      ".x.1-2"};
  for (const std::string& file : kept) scratch.write(file, "");
  for (const char* file : {".x.1-2.tmp", ".x.99-0.tmp"}) scratch.write(file, "");
  remove_temporaries(scratch.path(), [&](const std::string& of) {
    return of == "x" || of == name.substr(0, AtomicFile::kMostName);
  });
  const std::vector<std::string> left = scratch.names();
  CHECK(std::set<std::string>(left.begin(), left.end()) == kept);
  remove_temporaries(scratch / "nowhere", [](const std::string&) { return true; });
}

TEST_CASE("a full disk leaves the old file and no temporary") {
  const Scratch scratch;
  const std::string path = scratch.write("out", "old");
  {
    const FileSizeLimit limit(1 << 16);
    AtomicFile file(path);
    try {
      file.write(std::string(1 << 20, 'x'));
      FAIL("written past the limit");
    } catch (const Error& e) {
      CHECK(e.code() == Exit::kDevice);
      CHECK_THAT(e.what(), Catch::Contains(path));
    }
  }
  CHECK(read_text_file(path, 10) == "old");
  CHECK(scratch.names() == std::vector<std::string>{"out"});
}
