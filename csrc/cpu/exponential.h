// e^x for vectors of floats.
#pragma once

#include "simd.h"

namespace undivided::UNDIVIDED_VARIANT {

// Error below 1.5 units in the last place. x is cut to [-87, 87], so that neither the result nor 1 / (1 + the result)
// is denormal or infinite; NaN stays NaN.
UNDIVIDED_INLINE Vec exponential(Vec x) {
  x = x > broadcast(87.0F) ? broadcast(87.0F) : x;
  x = x < broadcast(-87.0F) ? broadcast(-87.0F) : x;
  // x = n ln 2 + r. Adding 1.5 * 2^23 leaves n in the low bits of the sum; ln 2 in two parts keeps the bits of r.
  const Vec shifter = broadcast(12582912.0F);
  const Vec shifted = x * 1.44269504F + shifter;
  const Vec n = shifted - shifter;
  const Vec r = (x - n * 0.693145752F) - n * 1.42860677e-6F;
  Vec e = broadcast(1.98412698e-4F);
  e = e * r + 1.38888889e-3F;
  e = e * r + 8.33333333e-3F;
  e = e * r + 4.16666667e-2F;
  e = e * r + 1.66666667e-1F;
  e = e * r + 0.5F;
  e = e * (r * r) + r + 1.0F;
  return of_bits(bits_of(e) + (bits_of(shifted) << 23));
}

}  // namespace undivided::UNDIVIDED_VARIANT
