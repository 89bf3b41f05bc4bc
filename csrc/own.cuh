// What steps take beside gates and states: a cell's parameters, of a unit, and the inputs of its steps.
#pragma once

#include "arguments.h"
#include "cell.cuh"

namespace fastrnn {

// The parameters of a unit, `unit` of all of the layer, zero where it does not exist. Kernels load them once.
template <class P, class Arguments>
DEVICE void load_parameters(const Arguments& a, int direction, int unit, bool exists,
                            Values<P::Cell::PARAMETERS>& own) {
  constexpr int PARAMETERS = P::Cell::PARAMETERS;
#pragma unroll
  for (int i = 0; i < PARAMETERS; ++i) {
    const int64_t at = (int64_t(direction) * PARAMETERS + i) * a.H + unit;
    own[i] = exists ? P::Element::to_float(static_cast<const typename P::Word*>(a.parameters)[at]) : 0.f;
  }
}

// A step's inputs as they are stored, at element `at` of each of their tensors, so that nothing waits for the loads.
template <class P, class Arguments>
DEVICE void load_inputs(const Arguments& a, int64_t at, bool exists, typename P::Word (&words)[ROOM<P::Cell::INPUTS>]) {
#pragma unroll
  for (int i = 0; i < P::Cell::INPUTS; ++i) {
    words[i] =
        exists ? static_cast<const typename P::Word*>(pick<P::Cell::INPUTS>(a.inputs, i))[at] : typename P::Word(0);
  }
}

// The same as a step computes with them: zero where it is not live, whatever may lie there.
template <class P>
DEVICE void take_inputs(const typename P::Word (&words)[ROOM<P::Cell::INPUTS>], bool lives,
                        Values<P::Cell::INPUTS>& inputs) {
#pragma unroll
  for (int i = 0; i < P::Cell::INPUTS; ++i) inputs[i] = lives ? P::Element::to_float(words[i]) : 0.f;
}

// What a step that is not live saves is as finite as all else: it has computed from nothing.
template <class Cell>
DEVICE void keep_finite(bool lives, Values<Cell::SAVED>& saved) {
#pragma unroll
  for (int v = 0; v < Cell::SAVED; ++v) {
    if (!Cell::FINITE) saved[v] = lives ? saved[v] : 0.f;
  }
}

}  // namespace fastrnn
