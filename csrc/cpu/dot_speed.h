// Whether this processor multiplies pairs of bfloat16 faster than single floats. Zen 4 does, twice as fast; on Emerald
// Rapids the instruction has a quarter of the rate of a multiplication of floats and so half of its operations (96 and 188
// GFLOP/s a core at 2.9 GHz), and attention that widens first is 1.4 to 1.9 times as fast.
#pragma once

#include "variant.h"

// Measured, in some 20 microseconds: the instruction sets that a processor names do not say how fast they are.
UNDIVIDED_DECLARE(bool measured_dots_are_faster())
