// The PDB format's columns.
#include "io/structure_writer.h"

#include <cmath>
#include <cstdio>

#include "core/geometry/residue_constants.h"

namespace ff {

namespace {

constexpr int64_t kMostResidues = 9999;
constexpr int kMostSerials = 99999, kColumns = 80;

}  // namespace

std::string to_pdb(const PredictedStructure& s) {
  const int64_t n = s.aatype.numel();
  check(n > 0 && s.positions.shape() == Dims{n, kAtom37, 3} && s.mask.shape() == Dims{n, kAtom37} &&
            s.b_factors.shape() == Dims{n} && s.chain.size() == 1,
        "to_pdb: positions ", s.positions.shape().str(), ", mask ", s.mask.shape().str(), ", B ",
        s.b_factors.shape().str(), " for ", n, " residues of chain '", s.chain, "'");
  check_input(n <= kMostResidues, "a structure of ", n,
              " residues does not fit the PDB format (at most ", kMostResidues, ")");
  const Tensor aatype = s.aatype.contiguous(), positions = s.positions.contiguous();
  const Tensor mask = s.mask.contiguous(), b_factors = s.b_factors.contiguous();

  std::string out;
  char text[2 * kColumns];
  const auto line = [&] {
    std::string padded = text;
    padded.resize(kColumns, ' ');
    out += padded + "\n";
  };
  std::snprintf(text, sizeof text, "MODEL     1");
  line();
  int serial = 0;
  const auto next = [&serial] {
    check_input(++serial <= kMostSerials, "a structure of more than ", kMostSerials,
                " atoms does not fit the PDB format");
    return serial;
  };
  const auto residue = [&](int64_t i) {
    const int type = aatype.data<int32_t>()[i];
    check(type >= 0 && type <= kUnknownRestype, "to_pdb: residue type ", type);
    return kRestypeNames[type].data();
  };
  for (int64_t i = 0; i < n; ++i)
    for (int a = 0; a < kAtom37; ++a) {
      if (mask.data<float>()[i * kAtom37 + a] < 0.5f) continue;
      const float* x = positions.data<float>() + (i * kAtom37 + a) * 3;
      for (int k = 0; k < 3; ++k)
        check(std::isfinite(x[k]) && x[k] > -999.9995f && x[k] < 9999.9995f,
              "the position of atom ", kAtomNames[a], " of residue ", i + 1, " is ", x[k],
              ", which a PDB file cannot hold");
      const std::string name(kAtomNames[a]);
      std::snprintf(text, sizeof text,
                    "ATOM  %5d %-4s %3.3s %s%4d    %8.3f%8.3f%8.3f%6.2f%6.2f          %2c", next(),
                    (name.size() == 4 ? name : " " + name).c_str(), residue(i), s.chain.c_str(),
                    int(i + 1), x[0], x[1], x[2], 1.0, b_factors.data<float>()[i], name[0]);
      line();
    }
  std::snprintf(text, sizeof text, "TER   %5d      %3.3s %s%4d", next(), residue(n - 1),
                s.chain.c_str(), int(n));
  line();
  std::snprintf(text, sizeof text, "ENDMDL");
  line();
  std::snprintf(text, sizeof text, "END");
  line();
  return out;
}

}  // namespace ff
