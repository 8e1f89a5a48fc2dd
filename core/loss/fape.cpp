// Frame aligned point error: every frame against every point, nothing of that size kept.
#include "core/loss/losses.h"
#include "core/loss/node.h"

namespace ff {

Var fape(const Var& frames, const Var& points, const FapeTarget& target, double clamp,
         double clamped, double scale) {
  const int64_t n_frame = frames.size(0), n_point = points.size(0);
  const Dtype dtype = frames.value().dtype();
  check(frames.shape() == Dims{n_frame, 12} && points.shape() == Dims{n_point, 3} &&
            target.frames.shape() == frames.shape() && target.points.shape() == points.shape() &&
            target.frame_mask.shape() == Dims{n_frame} &&
            target.point_mask.shape() == Dims{n_point} && points.value().dtype() == dtype,
        "FAPE of frames ", frames.shape(), " and points ", points.shape());
  LossNode node("FAPE loss");
  const Tensor d_frames = node.gradient(frames), d_points = node.gradient(points);
  const Device device = frames.value().device();
  const auto plain = [&](const Tensor& t) { return t.to(dtype).contiguous().to(device); };
  const Tensor loss = Tensor::empty({1}, Dtype::f64, device);
  kernels(device).fape({plain(frames.value()), plain(points.value()), plain(target.frames),
                        plain(target.frame_mask), plain(target.points), plain(target.point_mask)},
                       clamp, 1 - clamped, scale, loss, d_frames, d_points);
  return node.done(loss, dtype);
}

}  // namespace ff
