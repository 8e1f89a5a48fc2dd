// The peers' flags: AlphaFold's run_alphafold.py, OpenFold's run_pretrained_openfold.py,
// colabfold_batch.
#include "app/foreign_flags.h"

#include <algorithm>
#include <vector>

namespace ff {

std::string instead_of(const std::string& flag) {
  struct Group {
    std::vector<std::string> flags;
    const char* instead;
  };
  static const Group kGroups[] = {
      {{"--db-preset", "--host-url", "--pair-mode", "--pair-strategy", "--cpus", "--msa-only"},
       "fastfold does not search databases; give alignments with --alignments"},
      {{"--models-to-relax", "--use-gpu-relax", "--no-use-gpu-relax", "--amber", "--num-relax",
        "--relax-max-iterations", "--skip-relaxation", "--run-relax", "--relaxation"},
       "fastfold does not relax structures; leave it out"},
      {{"--num-multimer-predictions-per-model", "--model-type", "--calc-extra-ptm",
        "--multimer-ri-gap"},
       "fastfold predicts single chains; leave it out"},
      {{"--openfold-checkpoint-path"}, "convert OpenFold's weights to npz and give --params"},
      {{"--model-device", "--gpus"}, "use --device"},
      {{"--max-seq", "--max-extra-seq"}, "use --max-msa CLUSTERS:EXTRA"},
      {{"--use-custom-template"}, "use --template FILE"},
      {{"--pdb-hit-file", "--local-pdb-path"},
       "put the hits beside the alignments and use --template-mmcif-dir"},
      {{"--use-single-seq-mode"}, "use --msa-mode single_sequence"},
      {{"--overwrite-existing-results"}, "that is the default; --skip-existing is the contrary"},
      {{"--chunk-size", "--long-sequence-inference", "--inplace", "--trace-model",
        "--use-deepspeed-evoformer-attention", "--recompile-padding", "--compile-mode",
        "--benchmark"},
       "there is nothing to tune or compile; leave it out"},
      {{"--data", "--zip", "--jobname-prefix", "--sort-queries-by", "--output-postfix"},
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
