// Datasets: shards of training chains (docs/dataset-format.md), read chunk by chunk.
//
// A shard is an HDF5 file that any HDF5 program can read. Its index says at which offset each chunk
// stands, how long it is and its CRC-32, so that this reader takes chunks straight from the file:
// from any thread, without HDF5's lock, and a damaged file never gets to HDF5's own parser.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/features.h"
#include "io/structure_reader.h"

namespace ff {

/// What the index holds of a chain.
struct ChainInfo {
  std::string id;         ///< entry_chain, "102m_A"
  std::string sequence;   ///< SEQRES, one-letter codes, X unknown
  std::string date;       ///< YYYY-MM-DD of the release, "" unknown
  std::string method;     ///< "x-ray diffraction", ...; "" unknown
  std::string source;     ///< name of the file that it came from
  double resolution = 0;  ///< angstrom, 0 unknown
  int64_t n_seen = 0;     ///< residues whose C-alpha was seen
  int64_t n_msa = 1;      ///< rows of the alignment with the query; 1: single sequence
  int64_t n_templates = 0;
  int64_t cluster = -1;      ///< line of the build's cluster file, from 0; -1 in none
  int64_t cluster_size = 1;  ///< chains on that line
  bool distillation = false;

  int64_t n_res() const { return std::ssize(sequence); }
};

class Dataset {
 public:
  /// Reads the indices of shards, given as files or as folders of *.h5. Keeps nothing else in
  /// memory and no file open. Throws Exit::kInput naming the file where one is no shard, of another
  /// format version, cut off or damaged in header or index, and where a folder lacks a shard of its
  /// build.
  explicit Dataset(const std::vector<std::string>& paths);

  /// In the order of the paths, of the shards' names in a folder, of each shard's index.
  const std::vector<ChainInfo>& chains() const { return chains_; }
  /// The shard's path.
  const std::string& shard(int64_t chain) const { return shards_[size_t(places_[chain].shard)]; }

  // The following read one part of a chain, an index of chains(), and may be called from any
  // thread. Each throws Exit::kInput naming shard and chain where what it read is damaged.

  /// Rows of the alignment (0 is the query), in any order and also several times, to `msa` and
  /// `deletions`, [rows, n_res] each: letters as RawFeatures::msa (kRestypeLetters, 21 the gap),
  /// deletions of more than 255 residues as 255. Reads and unpacks only the chunks that hold them.
  void read_msa(int64_t chain, std::span<const int32_t> rows, int8_t* msa,
                uint8_t* deletions) const;
  /// [n_res, 22] as RawFeatures::profile, over all rows.
  std::vector<float> profile(int64_t chain) const;
  /// Positions and mask over the whole sequence; `name` is the chain's id.
  ChainStructure structure(int64_t chain) const;
  /// The templates with these numbers, below n_templates (0 is the best), in this order.
  TemplateFeatures templates(int64_t chain, std::span<const int32_t> which) const;

 private:
  /// Where a chain's chunks are listed.
  struct Place {
    int32_t shard = 0;
    int32_t msa_chunk_rows = 1;
    int64_t table = 0;  ///< offset of the list in the shard
    uint32_t table_crc = 0;
  };
  class Chunks;
  Chunks open(int64_t chain) const;

  std::vector<std::string> shards_;
  std::vector<ChainInfo> chains_;
  std::vector<Place> places_;
};

/// A chain or file that a build left out, or what is to be said of one that it took.
struct BuildNote {
  bool rejected = true;
  std::string source, chain;  ///< `chain` "" where it concerns the whole file
  std::string reason;
};

/// What a shard holds beside its chains.
struct ShardHeader {
  int64_t part = 1, parts = 1;  ///< of its build, from 1
  std::string fingerprint;      ///< of the inputs and settings: 64 hexadecimal digits
  int64_t bytes = 0;            ///< of the whole file
};

/// Reads only the first 512 bytes; throws as the constructor of Dataset.
ShardHeader read_shard_header(const std::string& path);
/// The build's notes on this shard's files.
std::vector<BuildNote> read_shard_notes(const std::string& path);

/// Damage found in a shard.
struct ShardDamage {
  std::string chain;  ///< "" where it is in no chain's data
  std::string what;
};

/// Reads the whole shard: checksums of every chunk and of the file, sizes, letters, finite
/// positions, profile and query against the rows. `chains`, where given, gets the number checked.
std::vector<ShardDamage> verify_shard(const std::string& path, int64_t* chains = nullptr);

}  // namespace ff
