// Writes what parity reads: the sample's features and labels, a row for each pass.
#include "app/replay.h"

#include <filesystem>

#include "io/file.h"
#include "io/npz.h"

namespace ff {
namespace {

/// The passes' arrays beside each other on a new leading axis.
Arrays stacked(const std::vector<Arrays>& passes) {
  Arrays out;
  for (const auto& [name, first] : passes[0]) {
    Dims shape{int64_t(passes.size())};
    for (const int64_t d : first.shape()) shape.push_back(d);
    const Tensor all = Tensor::empty(shape, first.dtype());
    for (size_t i = 0; i < passes.size(); ++i)
      all.select(0, int64_t(i)).copy_from(passes[i].at(name));
    out.emplace(name, all);
  }
  return out;
}

}  // namespace

void write_replay(const std::string& folder, TrainConfig config, const Arrays& params,
                  const TrainingSample& sample) {
  std::filesystem::create_directories(folder);
  config.model.num_recycle = sample.num_recycle();
  config.model.resample_msa_in_recycling = true;  // a row for each pass
  write_file(folder + "/config.yaml", train_config_yaml(config));
  write_npz(folder + "/params.npz", params, false);
  write_npz(folder + "/batch.npz", stacked(sample.slices));
  write_npz(folder + "/labels.npz",
            stacked(std::vector<Arrays>(sample.slices.size(), sample.labels)));
  write_file(folder + "/command.txt",
             cat("fastfold parity --config config.yaml --params params.npz --batch batch.npz "
                 "--labels labels.npz --dropout-step ",
                 sample.step, " --dropout-sample ", sample.index, " --precision ",
                 config.run.precision, " --losses losses.npz --gradients gradients.npz\n"));
}

}  // namespace ff
