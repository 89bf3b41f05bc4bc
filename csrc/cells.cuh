// The cells' steps over registers; their equations stand in fastrnn/cells/.
//
// A cell is four functions of one unit of one sequence. `preactivations` gives what the activations apply to, in the
// order of what is saved; `activated` what is saved (of an RNN nothing is: what it activates is h itself); `update` the
// states after the step; `derivative` the gradients that take the saved values' place, in their order, and those that
// reach the states before the step directly. `Element` has the functions that they apply (elements.cuh).
#pragma once

#include "arguments.h"
#include "device.cuh"

namespace fastrnn {

struct Lstm {
  static constexpr CellKind KIND = CellKind::kLstm;
  static constexpr int GATES = 4;       // i, f, g, o: rows of the product, blocks of gx
  static constexpr int SAVED = 4;       // i, f, g, o
  static constexpr int VALUES = 4;      // max(SAVED, GATES): what is activated, and has a gradient
  static constexpr int STATES = 2;      // h, c
  static constexpr bool ADDS = true;    // whether gx and gh are only ever added, so that b_hh is part of gx
  static constexpr int UNBOUNDED = -1;  // which saved value may be larger than its format holds; -1: none

  static DEVICE void preactivations(const float (&gx)[GATES], const float (&gh)[GATES], float (&pre)[VALUES]) {
#pragma unroll
    for (int a = 0; a < GATES; ++a) pre[a] = gx[a] + gh[a];
  }

  template <class Element>
  static DEVICE void activated(const float (&pre)[VALUES], float (&values)[VALUES]) {
    values[0] = Element::sigmoid(pre[0]);
    values[1] = Element::sigmoid(pre[1]);
    values[2] = Element::tanh(pre[2]);
    values[3] = Element::sigmoid(pre[3]);
  }

  template <class Element>
  static DEVICE void update(const float (&values)[VALUES], const float (&before)[STATES], float (&after)[STATES]) {
    const float i = values[0], f = values[1], g = values[2], o = values[3];
    after[1] = f * before[1] + i * g;
    after[0] = o * Element::tanh(after[1]);
  }

  template <class Element>
  static DEVICE void derivative(const float (&dstates)[STATES], const float (&values)[VALUES],
                                const float (&before)[STATES], const float (&after)[STATES], float (&dvalues)[VALUES],
                                float (&dbefore)[STATES]) {
    const float i = values[0], f = values[1], g = values[2], o = values[3], dh = dstates[0];
    const float tanh_c = Element::tanh(after[1]);
    const float dc = dstates[1] + dh * o * (1.f - tanh_c * tanh_c);
    dvalues[0] = dc * g * i * (1.f - i);
    dvalues[1] = dc * before[1] * f * (1.f - f);
    dvalues[2] = dc * i * (1.f - g * g);
    dvalues[3] = dh * tanh_c * o * (1.f - o);
    dbefore[0] = 0.f;
    dbefore[1] = dc * f;
  }
};

struct Gru {
  static constexpr CellKind KIND = CellKind::kGru;
  static constexpr int GATES = 3;   // r, z, n
  static constexpr int SAVED = 4;   // n, r, z, a
  static constexpr int VALUES = 4;  // their gradients: dgx is the first three, dgh the last three
  static constexpr int STATES = 1;  // h
  static constexpr bool ADDS = false;
  static constexpr int UNBOUNDED = 3;

  static DEVICE void preactivations(const float (&gx)[GATES], const float (&gh)[GATES], float (&pre)[VALUES]) {
    pre[0] = gx[2];
    pre[1] = gx[0] + gh[0];
    pre[2] = gx[1] + gh[1];
    pre[3] = gh[2];
  }

  template <class Element>
  static DEVICE void activated(const float (&pre)[VALUES], float (&values)[VALUES]) {
    values[1] = Element::sigmoid(pre[1]);
    values[2] = Element::sigmoid(pre[2]);
    values[3] = pre[3];
    values[0] = Element::tanh(pre[0] + values[1] * pre[3]);
  }

  template <class Element>
  static DEVICE void update(const float (&values)[VALUES], const float (&before)[STATES], float (&after)[STATES]) {
    const float n = values[0], z = values[2];
    after[0] = n + z * (before[0] - n);
  }

  template <class Element>
  static DEVICE void derivative(const float (&dstates)[STATES], const float (&values)[VALUES],
                                const float (&before)[STATES], const float (&)[STATES], float (&dvalues)[VALUES],
                                float (&dbefore)[STATES]) {
    const float n = values[0], r = values[1], z = values[2], a = values[3], dh = dstates[0];
    const float dn = dh * (1.f - z) * (1.f - n * n);
    dvalues[0] = dn;
    dvalues[1] = dn * a * r * (1.f - r);
    dvalues[2] = dh * (before[0] - n) * z * (1.f - z);
    dvalues[3] = dn * r;
    dbefore[0] = dh * z;
  }
};

struct Rnn {
  static constexpr int GATES = 1;
  static constexpr int SAVED = 0;
  static constexpr int VALUES = 1;
  static constexpr int STATES = 1;  // h
  static constexpr bool ADDS = true;
  static constexpr int UNBOUNDED = -1;

  static DEVICE void preactivations(const float (&gx)[GATES], const float (&gh)[GATES], float (&pre)[VALUES]) {
    pre[0] = gx[0] + gh[0];
  }

  template <class Element>
  static DEVICE void update(const float (&values)[VALUES], const float (&)[STATES], float (&after)[STATES]) {
    after[0] = values[0];
  }
};

struct RnnTanh : Rnn {
  static constexpr CellKind KIND = CellKind::kRnnTanh;

  template <class Element>
  static DEVICE void activated(const float (&pre)[VALUES], float (&values)[VALUES]) {
    values[0] = Element::tanh(pre[0]);
  }

  template <class Element>
  static DEVICE void derivative(const float (&dstates)[STATES], const float (&)[VALUES], const float (&)[STATES],
                                const float (&after)[STATES], float (&dvalues)[VALUES], float (&dbefore)[STATES]) {
    dvalues[0] = dstates[0] * (1.f - after[0] * after[0]);
    dbefore[0] = 0.f;
  }
};

struct RnnRelu : Rnn {
  static constexpr CellKind KIND = CellKind::kRnnRelu;

  template <class Element>
  static DEVICE void activated(const float (&pre)[VALUES], float (&values)[VALUES]) {
    values[0] = pre[0] <= 0.f ? 0.f : pre[0];
  }

  template <class Element>
  static DEVICE void derivative(const float (&dstates)[STATES], const float (&)[VALUES], const float (&)[STATES],
                                const float (&after)[STATES], float (&dvalues)[VALUES], float (&dbefore)[STATES]) {
    dvalues[0] = after[0] <= 0.f ? 0.f : dstates[0];
    dbefore[0] = 0.f;
  }
};

}  // namespace fastrnn
