// clang-format off
// The cells' classes, of which cell.cuh says what they are.
// Written by `python -m fastrnn.cells.generate` from the functions in fastrnn/cells; not to be edited.
#pragma once

#include "cell.cuh"

namespace fastrnn {

struct RnnTanh {
  static constexpr CellKind KIND = CellKind::kRnnTanh;
  static constexpr int X_GATES = 1;  // a
  static constexpr int U_GATES = 1;  // a
  static constexpr int BLOCKS = 1;  // a_a
  static constexpr int PREACTIVATIONS = 1;
  static constexpr int SAVED = 0;
  static constexpr int STATES = 1;  // h
  static constexpr int PARAMETERS = 0;
  static constexpr int INPUTS = 0;
  static constexpr bool ADDS = true;
  static constexpr uint64_t U_ORDER = 0x0;
  static constexpr bool FINITE = true;
  static constexpr unsigned UNBOUNDED = 0;
  static constexpr unsigned SAVED_READ = 0;
  static constexpr unsigned READS_BEFORE = 0;
  static constexpr unsigned READS_AFTER = 0b1;  // h

  static DEVICE void preactivations(const Values<X_GATES>& gx, const Values<U_GATES>& gh,
                                    Values<PREACTIVATIONS>& pre) {
    pre[0] = gx[0] + gh[0];
  }

  template <class Element>
  static DEVICE void step(const Values<PREACTIVATIONS>& pre, const Values<STATES>&, const Values<PARAMETERS>&,
                          const Values<INPUTS>&, Values<STATES>& after, Values<SAVED>&) {
    const float a_a = pre[0];
    after[0] = Element::tanh(a_a);
  }

  template <class Element>
  static DEVICE void derivative(const Values<STATES>& dafter, const Values<SAVED>&, const Values<STATES>&,
                                const Values<STATES>& after, const Values<PARAMETERS>&, const Values<INPUTS>&,
                                Values<BLOCKS>& dblocks, Values<STATES>& dbefore) {
    const float dh_after = dafter[0];
    const float h_after = after[0];
    const float da_a = dh_after * (1.f - h_after * h_after);
    dblocks[0] = da_a;
    dbefore[0] = 0.f;
  }
};

struct RnnRelu {
  static constexpr CellKind KIND = CellKind::kRnnRelu;
  static constexpr int X_GATES = 1;  // a
  static constexpr int U_GATES = 1;  // a
  static constexpr int BLOCKS = 1;  // a_a
  static constexpr int PREACTIVATIONS = 1;
  static constexpr int SAVED = 0;
  static constexpr int STATES = 1;  // h
  static constexpr int PARAMETERS = 0;
  static constexpr int INPUTS = 0;
  static constexpr bool ADDS = true;
  static constexpr uint64_t U_ORDER = 0x0;
  static constexpr bool FINITE = true;
  static constexpr unsigned UNBOUNDED = 0;
  static constexpr unsigned SAVED_READ = 0;
  static constexpr unsigned READS_BEFORE = 0;
  static constexpr unsigned READS_AFTER = 0b1;  // h

  static DEVICE void preactivations(const Values<X_GATES>& gx, const Values<U_GATES>& gh,
                                    Values<PREACTIVATIONS>& pre) {
    pre[0] = gx[0] + gh[0];
  }

  template <class Element>
  static DEVICE void step(const Values<PREACTIVATIONS>& pre, const Values<STATES>&, const Values<PARAMETERS>&,
                          const Values<INPUTS>&, Values<STATES>& after, Values<SAVED>&) {
    const float a_a = pre[0];
    after[0] = Element::relu(a_a);
  }

  template <class Element>
  static DEVICE void derivative(const Values<STATES>& dafter, const Values<SAVED>&, const Values<STATES>&,
                                const Values<STATES>& after, const Values<PARAMETERS>&, const Values<INPUTS>&,
                                Values<BLOCKS>& dblocks, Values<STATES>& dbefore) {
    const float dh_after = dafter[0];
    const float h_after = after[0];
    const float da_a = h_after <= 0.f ? 0.f : dh_after;
    dblocks[0] = da_a;
    dbefore[0] = 0.f;
  }
};

struct Lstm {
  static constexpr CellKind KIND = CellKind::kLstm;
  static constexpr int X_GATES = 4;  // i, f, g, o
  static constexpr int U_GATES = 4;  // i, f, g, o
  static constexpr int BLOCKS = 4;  // a_i, a_f, a_g, a_o
  static constexpr int PREACTIVATIONS = 4;
  static constexpr int SAVED = 4;  // i, f, g, o
  static constexpr int STATES = 2;  // h, c
  static constexpr int PARAMETERS = 0;
  static constexpr int INPUTS = 0;
  static constexpr bool ADDS = true;
  static constexpr uint64_t U_ORDER = 0x3210;
  static constexpr bool FINITE = true;
  static constexpr unsigned UNBOUNDED = 0;
  static constexpr unsigned SAVED_READ = 0;
  static constexpr unsigned READS_BEFORE = 0b10;  // c
  static constexpr unsigned READS_AFTER = 0b10;  // c

  static DEVICE void preactivations(const Values<X_GATES>& gx, const Values<U_GATES>& gh,
                                    Values<PREACTIVATIONS>& pre) {
    pre[0] = gx[0] + gh[0];
    pre[1] = gx[1] + gh[1];
    pre[2] = gx[2] + gh[2];
    pre[3] = gx[3] + gh[3];
  }

  template <class Element>
  static DEVICE void step(const Values<PREACTIVATIONS>& pre, const Values<STATES>& before, const Values<PARAMETERS>&,
                          const Values<INPUTS>&, Values<STATES>& after, Values<SAVED>& saved) {
    const float a_i = pre[0], a_f = pre[1], a_g = pre[2], a_o = pre[3];
    const float c_before = before[1];
    const float i = Element::sigmoid(a_i);
    const float f = Element::sigmoid(a_f);
    const float g = Element::tanh(a_g);
    const float o = Element::sigmoid(a_o);
    const float c = f * c_before + i * g;
    after[0] = o * Element::tanh(c);
    after[1] = c;
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  template <class Element>
  static DEVICE void derivative(const Values<STATES>& dafter, const Values<SAVED>& saved,
                                const Values<STATES>& before, const Values<STATES>& after, const Values<PARAMETERS>&,
                                const Values<INPUTS>&, Values<BLOCKS>& dblocks, Values<STATES>& dbefore) {
    const float dh_after = dafter[0], dc_after = dafter[1];
    const float i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const float c_before = before[1];
    const float c_after = after[1];
    const float tanh_c = Element::tanh(c_after);
    const float dc = dc_after + dh_after * o * (1.f - tanh_c * tanh_c);
    const float di = dc * g;
    const float da_i = di * i * (1.f - i);
    const float df = dc * c_before;
    const float da_f = df * f * (1.f - f);
    const float dg = dc * i;
    const float da_g = dg * (1.f - g * g);
    const float do_ = dh_after * tanh_c;
    const float da_o = do_ * o * (1.f - o);
    dblocks[0] = da_i;
    dblocks[1] = da_f;
    dblocks[2] = da_g;
    dblocks[3] = da_o;
    dbefore[0] = 0.f;
    dbefore[1] = dc * f;
  }
};

struct Gru {
  static constexpr CellKind KIND = CellKind::kGru;
  static constexpr int X_GATES = 3;  // r, z, n
  static constexpr int U_GATES = 3;  // r, z, n
  static constexpr int BLOCKS = 4;  // x_n, a_r, a_z, u_n
  static constexpr int PREACTIVATIONS = 4;
  static constexpr int SAVED = 4;  // n, r, z, u_n
  static constexpr int STATES = 1;  // h
  static constexpr int PARAMETERS = 0;
  static constexpr int INPUTS = 0;
  static constexpr bool ADDS = false;
  static constexpr uint64_t U_ORDER = 0x210;
  static constexpr bool FINITE = true;
  static constexpr unsigned UNBOUNDED = 0b1000;  // u_n
  static constexpr unsigned SAVED_READ = 0;
  static constexpr unsigned READS_BEFORE = 0b1;  // h
  static constexpr unsigned READS_AFTER = 0;

  static DEVICE void preactivations(const Values<X_GATES>& gx, const Values<U_GATES>& gh,
                                    Values<PREACTIVATIONS>& pre) {
    pre[0] = gx[2];
    pre[1] = gx[0] + gh[0];
    pre[2] = gx[1] + gh[1];
    pre[3] = gh[2];
  }

  template <class Element>
  static DEVICE void step(const Values<PREACTIVATIONS>& pre, const Values<STATES>& before, const Values<PARAMETERS>&,
                          const Values<INPUTS>&, Values<STATES>& after, Values<SAVED>& saved) {
    const float x_n = pre[0], a_r = pre[1], a_z = pre[2], u_n = pre[3];
    const float h_before = before[0];
    const float r = Element::sigmoid(a_r);
    const float z = Element::sigmoid(a_z);
    const float n = Element::tanh(x_n + r * u_n);
    after[0] = n + z * (h_before - n);
    saved[0] = n;
    saved[1] = r;
    saved[2] = z;
    saved[3] = u_n;
  }

  template <class Element>
  static DEVICE void derivative(const Values<STATES>& dafter, const Values<SAVED>& saved,
                                const Values<STATES>& before, const Values<STATES>&, const Values<PARAMETERS>&,
                                const Values<INPUTS>&, Values<BLOCKS>& dblocks, Values<STATES>& dbefore) {
    const float dh_after = dafter[0];
    const float n = saved[0], r = saved[1], z = saved[2], u_n = saved[3];
    const float h_before = before[0];
    const float t1 = 1.f - z;
    const float dn = dh_after * t1;
    const float dx_n = dn * (1.f - n * n);
    const float dr = dx_n * u_n;
    const float da_r = dr * r * (1.f - r);
    const float dz = dh_after * (h_before - n);
    const float da_z = dz * z * t1;
    const float du_n = dx_n * r;
    dblocks[0] = dx_n;
    dblocks[1] = da_r;
    dblocks[2] = da_z;
    dblocks[3] = du_n;
    dbefore[0] = dh_after * z;
  }
};

}  // namespace fastrnn
