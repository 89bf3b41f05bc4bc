// What lengths and resets mean for a step t of one sequence: docs/design.md, "Semantics". `backwards` says whether the
// forward computation runs from the end; "before" and "after" are meant in its order. References are for what lies in
// memory: it is read only where it decides.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace fastrnn::masks {

// How many steps of a sequence are live: all where no lengths are given, none beyond the batch.
template <class Arguments>
DEVICE int length(const Arguments& a, int sequence) {
  if (sequence >= a.B) return 0;
  const int64_t given = a.lengths ? a.lengths[sequence] : a.T;
  return given < 0 ? 0 : given > a.T ? a.T : static_cast<int>(given);
}

// Whether step t belongs to the sequence. One that does not leaves the states as they are, gives zero, and hands their
// gradients on unchanged.
DEVICE bool live(int t, const int& length) { return t < length; }

// Where a reset lies that cuts between step t and the one before it, and the one after it. A reset at k lies between
// steps k - 1 and k.
DEVICE int entry(int t, bool backwards) { return backwards ? t + 1 : t; }
DEVICE int exit(int t, bool backwards) { return entry(t, !backwards); }

// Whether a reset at k, if it is there, cuts: the states that pass k are zero then, and no gradient passes it. One that
// lies at a step which is not live does not.
DEVICE bool cut(uint8_t reset, const int& k, const int& length) { return reset != 0 && live(k, length); }

// Whether no live step comes before step t, so that, cuts aside, the initial states enter it and its gradients reach
// them. `is_first`: whether no step at all comes before it.
DEVICE bool starts(bool is_first, int t, const int& length, const bool& backwards) {
  return is_first || (backwards && t + 1 >= length);
}

}  // namespace fastrnn::masks
