# A driver too old for the GPU module, by a stand-in that CUDA's runtime finds in its place.
source "$(dirname "$0")/common.bash"
if [ ! -f "$(dirname "$program")/libfastfold_cuda.so" ]; then
  echo "SKIPPED: the GPU module is not built"
  exit 0
fi

cat > driver.c << 'EOF'
#include <string.h>
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuInit(unsigned flags) { return (void)flags, 0; }
static int unknown(void) { return 801; }
int cuGetProcAddress_v2(const char *name, void **to, int version, unsigned long flags, int *found) {
  (void)version, (void)flags;
  *to = !strcmp(name, "cuDriverGetVersion") ? (void *)cuDriverGetVersion
        : !strcmp(name, "cuInit")           ? (void *)cuInit
        : !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2
                                            : (void *)unknown;
  if (found) *found = 0;
  return 0;
}
EOF
cc -shared -fPIC -o libcuda.so.1 driver.c || problem "the stand-in does not compile"
export LD_LIBRARY_PATH=$work
printf '>short\nMKTAYIAKQRQISFVK\n' > short.fasta
expect 0 "the NVIDIA driver supports CUDA 12.4, and this build needs" doctor
expect 0 "" init --preset demo --seed 1 -o demo.npz
expect 4 "--device cuda cannot be had: the NVIDIA driver supports CUDA 12.4, and this build needs" \
  predict short.fasta --params demo.npz -o out --device cuda
[ -e out/short ] && problem "something was written without a GPU"

finish
