// How fast this processor multiplies vectors, measured in some 20 microseconds: the instruction sets that it names do not
// say. Each asks whether as many of one kind take less than 1.5 times as long as of the other, and kinds differ by 1, 2 or 4.
#pragma once

#include "variant.h"

// Whether pairs of bfloat16 are multiplied as fast as single floats, so twice as many. Zen 4 and 5 do; on Emerald Rapids
// the instruction has a quarter of the rate and so half of the operations (96 and 188 GFLOP/s a core at 2.9 GHz), and
// attention that widens first is 1.4 to 1.9 times as fast.
UNDIVIDED_DECLARE(bool measured_dots_are_faster())
// Whether 16 floats are multiplied as fast as 8. Zen 5 of servers does; Zen 4 works on halves one after the other.
UNDIVIDED_DECLARE(bool measured_whole_vectors())
