// The forward's product: a warp's weights, its part of the sum, and the sum over the warps along k.
#pragma once

#include "forward_shape.cuh"
#include "tiles.cuh"

namespace fastrnn::cluster {

// Tiles of weights that are loaded at a time: registers are for the weights, not for loads in flight.
constexpr int WEIGHT_LOADS = 8;

// The head's weights (G·D, D) to registers and, what does not fit there, to `rest` in shared memory.
template <class P>
DEVICE void load_weights(const ForwardLane<P>& me, const typename P::Word* w_hh, int D, word4 (&w)[P::REGISTER_TILES],
                         char* rest) {
  constexpr int PACKED = PACKED_ELEMENTS<typename P::Word>;
  const bool aligned = D % PACKED == 0;
#pragma unroll
  for (int i = 0; i < P::TILES; ++i) {
    const int k = (me.k_warp * P::K_TILES + i / P::M_TILES) * P::TILE_K + PACKED * me.q, beyond = k + P::TILE_K / 2;
    word4 tile;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = i % P::M_TILES, unit = me.group_unit(P::group_of(m, half)) + me.g;
      const typename P::Word* row = w_hh + (int64_t(P::gate_of(m, half)) * D + unit) * D;
      tile.x[half] = load_packed(row + k, unit < D ? D - k : 0, aligned);
      tile.x[half + 2] = load_packed(row + beyond, unit < D ? D - beyond : 0, aligned);
    }
    tile = P::Element::operand(tile);
    keep_tile<P>(i, tile, w, rest);
    if (i % WEIGHT_LOADS == WEIGHT_LOADS - 1) device::compiler_fence();
  }
}

// The pair of tiles of the state from the warp's tile `k` on, which the product takes.
template <class P>
DEVICE word4 load_state(const ForwardLane<P>& me, const char* state, int k) {
  return device::load_matrices(state + (me.k_warp * P::K_TILES + k) * P::PRODUCT_BYTES, me.lane);
}

// w h of the warp's gate rows and its part of the sum: `sums` in the layout of the product's tiles. Calls `meanwhile`
// where there is time: before the first wait, or behind the first products. `ahead` has what look_ahead loads, and `b`,
// of a block on its own, the first pairs of the state.
template <class P, class Meanwhile>
DEVICE void multiply(const ForwardLane<P>& me, const word4 (&w)[P::REGISTER_TILES], const char* rest, const char* state,
                     uint64_t* arrivals, int parity, float (&sums)[P::M_TILES][4], word4 (&ahead)[P::LOOKAHEAD],
                     word4 (&b)[P::STATE_PAIRS], const Meanwhile& meanwhile) {
  float chains[P::CHAINS][P::M_TILES][4] = {};
  if (P::BLOCKS > 1) meanwhile();
#pragma unroll
  for (int k = 0; k < P::K_TILES; k += 2) {
    if (P::ARRIVALS && k % P::TILES_OF_ARRIVAL == 0) {
      constexpr int OF_WARP = P::ARRIVALS / P::K_WARPS;
      device::mbarrier_wait(arrivals + me.k_warp * OF_WARP + k / P::TILES_OF_ARRIVAL, parity);
      b[0] = load_state<P>(me, state, k);
    }
    const word4 now = b[k / 2 % P::STATE_PAIRS];
    if (k + 2 * P::STATE_PAIRS < P::K_TILES && (!P::ARRIVALS || (k + 2) % P::TILES_OF_ARRIVAL != 0)) {
      b[k / 2 % P::STATE_PAIRS] = load_state<P>(me, state, k + 2 * P::STATE_PAIRS);
    }
#pragma unroll
    for (int i = k * P::M_TILES; i < (k + 2) * P::M_TILES; ++i) {
      const int second = i / P::M_TILES % 2;
      float (&chain)[4] = chains[second % P::CHAINS][i % P::M_TILES];
      multiply_tile<P>(i, w, rest, ahead, now.x[2 * second], now.x[2 * second + 1], chain);
    }
    if (P::BLOCKS == 1 && k == P::K_TILES / 4 * 2 - 2) meanwhile();
  }
#pragma unroll
  for (int m = 0; m < P::M_TILES; ++m) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      sums[m][e] = P::CHAINS == 1 ? chains[0][m][e] : chains[0][m][e] + chains[P::CHAINS - 1][m][e];
  }
}

// Adds up what the warps along k have, each warp its own part of it, in the warps' order.
template <class P>
DEVICE void reduce(const ForwardLane<P>& me, const float (&sums)[P::M_TILES][4], char* partial,
                   Values<P::U_GATES> (&gh)[P::ITEMS][P::COLUMNS]) {
  if (P::K_WARPS == 1) {
#pragma unroll
    for (int i = 0; i < P::ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < P::COLUMNS; ++j) {
#pragma unroll
        for (int a = 0; a < P::U_GATES; ++a) gh[i][j][a] = sums[P::tile_of(i, a)][P::half_of(i, a) * 2 + j];
      }
    }
    return;
  }
  struct alignas(sizeof(float) * P::PARTIAL_FLOATS) Partial {
    float x[P::PARTIAL_FLOATS];
  };
  // [receiver][sender][item][lane]
  auto at = [&](int receiver, int sender, int item) {
    const int row = (me.m_warp * P::K_WARPS + receiver) * P::K_WARPS + sender;
    return partial + (row * P::ITEMS + item) * P::PARTIAL_ITEM_BYTES + me.lane * sizeof(Partial);
  };
#pragma unroll
  for (int to = 0; to < P::K_WARPS; ++to) {
#pragma unroll
    for (int i = 0; i < P::ITEMS; ++i) {
      Partial part = {};
#pragma unroll
      for (int a = 0; a < P::U_GATES; ++a) {
        const int u = (P::K_WARPS == 4 ? to / 2 * P::ITEMS : 0) + i;
        part.x[a] = sums[P::tile_of(u, a)][P::half_of(u, a) * 2 + to % 2];
      }
      store(at(to, me.k_warp, i), part);
    }
  }
  device::named_barrier(1 + me.m_warp, P::K_WARPS * 32);
#pragma unroll
  for (int from = 0; from < P::K_WARPS; ++from) {
#pragma unroll
    for (int i = 0; i < P::ITEMS; ++i) {
      const Partial part = load<Partial>(at(me.k_warp, from, i));
#pragma unroll
      for (int a = 0; a < P::U_GATES; ++a) gh[i][0][a] = from ? gh[i][0][a] + part.x[a] : part.x[a];
    }
  }
}

}  // namespace fastrnn::cluster
