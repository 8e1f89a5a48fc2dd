// Writes shards of training chains (docs/dataset-format.md).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/dataset.h"

namespace ff {

/// A chain with its chunks packed: made in any thread, written in order.
struct PackedChain {
  ChainInfo info;
  int64_t msa_chunk_rows = 1;
  std::vector<std::string> chunks;  ///< in the order of the format
};

/// Packs what is known of a chain. `info` names it; its sequence and counts are taken from `raw`
/// and `structure`, which must be of one length.
PackedChain pack_chain(ChainInfo info, const RawFeatures& raw, const ChainStructure& structure);

/// One shard. It gets its name when it is complete; the same chains give the same bytes.
class ShardWriter {
 public:
  /// Throws Exit::kUsage when the file cannot be made there.
  ShardWriter(const std::string& path, const ShardHeader& header);
  ~ShardWriter();
  /// Throws Exit::kDevice when the disk is full.
  void add(const PackedChain& chain);
  /// Writes index and notes, reads all back and renames.
  void commit(const std::vector<BuildNote>& notes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ff
