// The peers' flags: AlphaFold's run_alphafold.py, OpenFold's run_pretrained_openfold.py,
// colabfold_batch.
#include "app/foreign_flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

namespace ff {
namespace {

constexpr const char* kGroup = "Flags of other programs that change nothing here";
constexpr const char* kNoRelaxation = "fastfold does not relax structures; leave it out";

}  // namespace

void add_idle_flags(CLI::App& app) {
  for (const auto& [flag, idle] :
       {std::pair("--models-to-relax", "none"), std::pair("--num-relax", "0")})
    app.add_option_function<std::string>(flag, [](const std::string&) {})
        ->check([idle = std::string(idle)](const std::string& value) {
          return value == idle ? "" : kNoRelaxation;
        })
        ->group(kGroup);
  for (const char* flag : {"--skip-relaxation", "--nouse-gpu-relax", "--overwrite-existing-results",
                           "--deterministic"})
    app.add_flag(flag)->group(kGroup);
}

std::string instead_of(const std::string& flag) {
  struct Group {
    std::vector<std::string> flags;
    const char* instead;
  };
  static const Group kGroups[] = {
      {{"--db-preset", "--host-url", "--pair-mode", "--pair-strategy", "--cpus", "--msa-only",
        "--enable-workflow"},
       "fastfold does not search databases; give alignments with --alignments"},
      {{"--use-gpu-relax", "--amber", "--relax-max-iterations", "--run-relax", "--relaxation"},
       kNoRelaxation},
      {{"--num-multimer-predictions-per-model", "--model-type", "--calc-extra-ptm",
        "--multimer-ri-gap"},
       "fastfold predicts single chains; leave it out"},
      {{"--openfold-checkpoint-path"}, "convert OpenFold's weights to npz and give --params"},
      {{"--model-order"}, "give --params once for each model, in your order"},
      {{"--model-device", "--gpus"}, "use --device"},
      {{"--max-seq", "--max-extra-seq"}, "use --max-msa CLUSTERS:EXTRA"},
      {{"--use-custom-template"}, "use --template FILE"},
      {{"--pdb-hit-file", "--local-pdb-path"},
       "put the hits beside the alignments and use --template-mmcif-dir"},
      {{"--use-single-seq-mode"}, "use --msa-mode single_sequence"},
      {{"--chunk-size", "--long-sequence-inference", "--inplace", "--trace-model",
        "--use-deepspeed-evoformer-attention", "--recompile-padding", "--compile-mode",
        "--benchmark", "--disable-unified-memory", "--max-memory"},
       "there is nothing to tune or compile; leave it out"},
      {{"--data", "--zip", "--jobname-prefix", "--sort-queries-by", "--output-postfix",
        "--skip-output", "--release-dates-path", "--subtract-plddt"},
       "leave it out"},
      {{"--use-dropout", "--initial-guess", "--save-recycles"}, "fastfold does not have it"},
  };
  for (const Group& group : kGroups)
    if (std::find(group.flags.begin(), group.flags.end(), flag) != group.flags.end())
      return group.instead;
  for (const char* end : {"-database-path", "-binary-path", "-n-cpu"})
    if (flag.ends_with(end)) return kGroups[0].instead;
  return "";
}

}  // namespace ff
