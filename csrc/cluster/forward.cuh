// The forward recurrence, way 2: a cluster computes eight sequences in one head and direction, all steps.
//
// A block keeps its share of the head's recurrent weights, most of it in registers as the first operand of the product:
// gate rows are its M, the sequences its N. At the end of a step each block sends its slice of the new state to all of
// the cluster by asynchronous stores, which count on a barrier where they arrive. There are two buffers and no barrier
// of the cluster in the loop: a block sends the state that follows step t + 1 only when it has received that of step t
// from all warps of all blocks, which therefore have read the buffer that it overwrites. Partial sums have two buffers
// for the same reason: the warps of a block that share units may be a step apart. A reset is the sender sending zero.
#pragma once

#include "../arguments.h"
#include "../memory.cuh"
#include "../place.cuh"
#include "forward_shape.cuh"

namespace fastrnn::cluster {

// Tiles of weights that are loaded at a time: registers are for the weights, not for loads in flight.
constexpr int WEIGHT_LOADS = 8;

// What a lane is in its cluster.
template <class P>
struct ForwardLane {
  int lane, m_warp, k_warp, rank;
  int g, q;  // the row of its own and the pair of columns in a matrix of 8 x 8

  DEVICE ForwardLane() {
    const int warp = device::thread() / 32;
    lane = device::thread() % 32;
    m_warp = warp / P::K_WARPS;
    k_warp = warp % P::K_WARPS;
    rank = P::BLOCKS == 1 ? 0 : device::cluster_rank();
    g = lane / 4;
    q = lane % 4;
  }

  // The first unit of group `u` of the warp.
  DEVICE int group_unit(int u) const { return rank * P::BLOCK_UNITS + (m_warp * P::GROUPS + u) * 8; }
  // The first unit of item `i`, and the first column, of what the lane finishes; its own unit is `g` further on.
  DEVICE int item_unit(int i) const { return group_unit((P::K_WARPS == 4 ? k_warp / 2 * P::ITEMS : 0) + i); }
  DEVICE int column() const { return 2 * q + (P::K_WARPS == 1 ? 0 : k_warp % 2); }
  // After the exchange of an item a lane holds a word4 of one column's units, as do SENDERS lanes in all, which share
  // out the blocks to send it to. Where a word4 has eight units, lanes 4 n to 4 n + 3 hold those of column n, or where
  // the warp finishes half of the columns, of its column of n and n ^ 1. Where it has four, they are the lower or the
  // upper half of the group as the lane's own unit is, of its own column.
  static constexpr bool HALVES = P::WORD_UNITS == 4;
  static constexpr int SENDERS = P::WORD_UNITS / P::COLUMNS;
  DEVICE int sent_column() const {
    if (HALVES) return P::COLUMNS == 2 ? 2 * q + g % 2 : column();
    return P::COLUMNS == 2 ? g : (g & 6) | k_warp % 2;
  }
  DEVICE int sent_unit() const { return HALVES ? (g & 4) : 0; }  // from the group's first
  DEVICE int sender() const {
    if (HALVES) return P::COLUMNS == 2 ? g / 2 % 2 : g % 4;
    return P::COLUMNS == 2 ? q : q + 4 * (g & 1);
  }
};

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
    if (i < P::REGISTER_TILES) {
      w[i < P::REGISTER_TILES ? i : 0] = tile;
    } else {
      store(rest + (i - P::REGISTER_TILES) * P::TILE_BYTES, tile);
    }
    if (i % WEIGHT_LOADS == WEIGHT_LOADS - 1) device::compiler_fence();
  }
}

// w h of the warp's gate rows and its part of the sum: `sums` in the layout of the product's tiles.
template <class P>
DEVICE void multiply(const ForwardLane<P>& me, const word4 (&w)[P::REGISTER_TILES], const char* rest, const char* state,
                     uint64_t* arrivals, int parity, float (&sums)[P::M_TILES][4]) {
  float chains[P::CHAINS][P::M_TILES][4] = {};
#pragma unroll
  for (int k = 0; k < P::K_TILES; k += 2) {
    if (P::ARRIVALS && k % P::TILES_OF_ARRIVAL == 0) {
      constexpr int OF_WARP = P::ARRIVALS / P::K_WARPS;
      device::mbarrier_wait(arrivals + me.k_warp * OF_WARP + k / P::TILES_OF_ARRIVAL, parity);
    }
    const word4 b = device::load_matrices(state + (me.k_warp * P::K_TILES + k) * P::PRODUCT_BYTES, me.lane);
#pragma unroll
    for (int i = k * P::M_TILES; i < (k + 2) * P::M_TILES; ++i) {
      const word4 tile = i < P::REGISTER_TILES ? w[i < P::REGISTER_TILES ? i : 0]
                                               : load<word4>(rest + (i - P::REGISTER_TILES) * P::TILE_BYTES);
      const int second = i / P::M_TILES % 2;
      P::Element::mma(chains[second % P::CHAINS][i % P::M_TILES], tile, b.x[2 * second], b.x[2 * second + 1]);
    }
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
                   float (&gh)[P::ITEMS][P::COLUMNS][P::GATES]) {
  if (P::K_WARPS == 1) {
#pragma unroll
    for (int i = 0; i < P::ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < P::COLUMNS; ++j) {
#pragma unroll
        for (int a = 0; a < P::GATES; ++a) gh[i][j][a] = sums[P::tile_of(i, a)][P::half_of(i, a) * 2 + j];
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
      for (int a = 0; a < P::GATES; ++a) {
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
      for (int a = 0; a < P::GATES; ++a) gh[i][0][a] = from ? gh[i][0][a] + part.x[a] : part.x[a];
    }
  }
}

// The word4 that the lane sends, of an item's `h` of which each lane has one unit and one or two columns.
template <class P>
DEVICE word4 gather_units(const ForwardLane<P>& me, const float (&h)[P::COLUMNS]) {
  using Element = typename P::Element;
  word4 units;
  if constexpr (P::WORD_UNITS == 8) {
    uint32_t pair;
    if constexpr (P::COLUMNS == 2) {
      pair = Element::pack(h[0], h[1]);
    } else {
      pair = me.k_warp % 2 ? Element::pack(0.f, h[0]) : Element::pack(h[0], 0.f);
    }
    pair = device::transpose(pair);
#pragma unroll
    for (int e = 0; e < 4; ++e) units.x[e] = device::shuffle(pair, me.sent_column() * 4 + e);
  } else {
    // Of two columns, lanes of even units want one and those of odd units the other. Each asks for its four units in
    // an order of its own, so that whoever is asked is asked for the same column by all.
    const int odd = P::COLUMNS == 2 ? me.g % 2 : 0, first = (me.sent_unit() + odd) * 4 + me.q;
    uint32_t got[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float asked = P::COLUMNS == 2 && (me.g + e) % 2 ? h[P::COLUMNS - 1] : h[0];
      got[e] = device::shuffle(Element::from_float(asked), first ^ e * 4);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) units.x[e] = odd ? got[e ^ 1] : got[e];
  }
  return units;
}

// Sends a word4 of units of a sequence to every block, `to` its buffer of the next state.
template <class P>
DEVICE void send(const ForwardLane<P>& me, const word4& units, char* to, uint64_t* arrivals) {
  if constexpr (P::BLOCKS == 1) {
    if (me.sender() == 0) store(to, units);
  } else {
    uint64_t* arrival = arrivals + me.rank * P::ARRIVALS / P::BLOCKS;
#pragma unroll
    for (int r = 0; r < P::BLOCKS; r += me.SENDERS) {
      const int block = r + me.sender();
      if (P::BLOCKS % me.SENDERS == 0 || block < P::BLOCKS) {
        device::store_async(device::map(to, block), units, device::map(arrival, block));
      }
    }
  }
}

// Waits until the cluster's blocks are there and their barriers and first states are too.
template <class P>
DEVICE void start(uint64_t* arrivals) {
  if constexpr (P::BLOCKS == 1) {
    device::block_barrier();
  } else {
    if (device::thread() == 0) {
      for (int i = 0; i < 2 * P::ARRIVALS; ++i) device::mbarrier_init(arrivals + i, 1);
      device::mbarrier_init_fence();
      for (int i = 0; i < P::ARRIVALS; ++i) device::mbarrier_expect(arrivals + i, 0);  // each block has the first state
    }
    device::cluster_arrive();
    device::cluster_wait();
  }
}

template <class P>
KERNEL(P::THREADS)
forward_kernel(ForwardArguments a) {
  using Cell = typename P::Cell;
  using Element = typename P::Element;
  using Word = typename P::Word;
  using SavedWord = typename Element::Saved::Word;
  constexpr int G = P::GATES, VALUES = P::VALUES, STATES = Cell::STATES, SAVED = Cell::SAVED;
  constexpr int ITEMS = P::ITEMS, COLUMNS = P::COLUMNS;

  const Place place(a);
  const int first = place.first, D = place.D, H = a.H, wide = place.wide;
  const bool second = place.direction == 1, vectors = D % P::WORD_UNITS == 0;

  // What this lane finishes: units `unit` + 8 i of columns `column` + j; and sends: a word4 from `sent_unit` + 8 i on.
  const ForwardLane<P> me;
  const int sent_unit = me.item_unit(0) + me.sent_unit(), sent_column = me.sent_column();
  const int unit = me.item_unit(0) + me.g, column = me.column(), head_unit = place.head * D + unit;
  auto inside = [&](int i, int j) { return unit + 8 * i < D && first + column + j < a.B; };

  char* shared = device::shared_memory();
  uint64_t* arrivals = reinterpret_cast<uint64_t*>(shared);  // [2][ARRIVALS]
  char* state = shared + P::BARRIER_BYTES;                   // [2][UNITS / WORD_UNITS][ROWS][WORD_UNITS]
  char* partial = state + 2 * P::STATE_BYTES;                // [2][WARPS][K_WARPS][ITEMS][32]
  char* rest = partial + 2 * P::PARTIAL_BYTES + (me.m_warp * P::K_WARPS + me.k_warp) * P::SHARED_TILES * P::TILE_BYTES +
               me.lane * sizeof(word4);

  word4 w[P::REGISTER_TILES];
  load_weights<P>(me, static_cast<const Word*>(a.w_hh[second]) + int64_t(place.head) * G * D * D, D, w, rest);

  // The states before the first step: this lane's own, and h for the product, of which every block has a copy.
  const uint32_t cut_first = device::ballot(!place.backwards && place.load_reset(a, 0, place.asked) != 0);
  const int64_t state_row = int64_t(place.direction) * a.B + first;
  float states[ITEMS][COLUMNS][STATES];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const bool zero = !inside(i, j) || (cut_first >> (column + j) & 1);
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        const Word* from = static_cast<const Word*>(s ? a.c0 : a.h0) + (state_row + column + j) * H + head_unit + 8 * i;
        states[i][j][s] = zero ? 0.f : Element::to_float(*from);
      }
    }
  }
  auto state_word = [](int k, int row) { return (k * P::ROWS / P::WORD_UNITS + slot(row)) * sizeof(word4); };
  for (int i = device::thread(); i < P::UNITS / P::WORD_UNITS * P::ROWS; i += P::THREADS) {
    const int row = i % P::ROWS, k = i / P::ROWS * P::WORD_UNITS;
    const bool zero = first + row >= a.B || (cut_first >> row & 1);
    const Word* from = static_cast<const Word*>(a.h0) + (state_row + row) * H + place.head * D + k;
    store(state + state_word(k, row), Element::operand(load_row(from, zero ? 0 : D - k, vectors)));
  }

  float bias[ITEMS][G];
  const Word* b_hh = static_cast<const Word*>(a.b_hh[second]);
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int gate = 0; gate < G; ++gate) {
      const bool none = Cell::ADDS || !b_hh || unit + 8 * i >= D;
      bias[i][gate] = none ? 0.f : Element::to_float(b_hh[int64_t(gate) * H + head_unit + 8 * i]);
    }
  }

  // Where the step's rows begin, in elements.
  const int dt = place.backwards ? -1 : 1, t_first = place.backwards ? a.T - 1 : 0;
  const int64_t row = int64_t(t_first) * a.B + first, directed = int64_t(place.direction) * a.T * a.B + row;
  const int64_t row_step = int64_t(dt) * a.B * H;
  int64_t gx_at = (directed + column) * G * H + head_unit;
  int64_t gates_at = (directed + column) * SAVED * H + head_unit;
  int64_t cs_at = (row + column) * wide + place.direction * H + head_unit;
  int64_t ys_at = (row + sent_column) * wide + place.direction * H + place.head * D + sent_unit;
  int64_t reset_at = int64_t(place.backwards ? a.T - 1 : 1) * a.B + place.asked;

  // What a step reads from memory is loaded a step ahead: gx, and whether the state is cut that leaves the step.
  Word gx[ITEMS][COLUMNS][G];
  uint8_t reset;
  auto load_step = [&](int t) {
    const Word* from = static_cast<const Word*>(a.gx) + gx_at;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          gx[i][j][gate] = inside(i, j) ? from[(j * G + gate) * int64_t(H) + 8 * i] : Word(0);
        }
      }
    }
    reset = place.load_reset(a, place.backwards ? t : t + 1, reset_at);
    gx_at += row_step * G;
    reset_at += dt * a.B;
  };
  if (a.T > 0) load_step(t_first);
  start<P>(arrivals);

#pragma unroll 1
  for (int step = 0; step < a.T; ++step) {
    const int t = t_first + dt * step, now = step & 1, then = now ^ 1;
    const bool last = step == a.T - 1;
    if (P::BLOCKS > 1 && device::thread() < P::ARRIVALS && !last) {
      device::mbarrier_expect(arrivals + then * P::ARRIVALS + device::thread(), P::STATE_BYTES / P::ARRIVALS);
    }
    float sums[P::M_TILES][4], gh[ITEMS][COLUMNS][G];
    multiply<P>(me, w, rest, state + now * P::STATE_BYTES, arrivals + now * P::ARRIVALS, step >> 1 & 1, sums);
    reduce<P>(me, sums, partial + now * P::PARTIAL_BYTES, gh);

    const uint32_t live = device::ballot(t < place.length), cuts = device::ballot(reset != 0 && !last);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      float values[COLUMNS][VALUES], h[COLUMNS], c[COLUMNS];
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const bool lives = live >> (column + j) & 1, is_cut = cuts >> (column + j) & 1;
        float x[G], pre[VALUES], after[STATES];
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          x[gate] = lives ? Element::to_float(gx[i][j][gate]) : 0.f;
          if (!Cell::ADDS) gh[i][j][gate] += bias[i][gate];
        }
        Cell::preactivations(x, gh[i][j], pre);
        Cell::template activated<Element>(pre, values[j]);
        Cell::template update<Element>(values[j], states[i][j], after);
#pragma unroll
        for (int s = 0; s < STATES; ++s) {
          if (!lives) after[s] = states[i][j][s];
          states[i][j][s] = is_cut ? 0.f : after[s];
        }
        h[j] = after[0];
        c[j] = after[STATES - 1];
      }

      // What is sent comes first: all blocks wait for it.
      word4 y = gather_units<P>(me, h), next = Element::operand(y);
      if (cuts >> sent_column & 1) next = {};
      char* to = state + then * P::STATE_BYTES + state_word(sent_unit + 8 * i, sent_column);
      if (P::BLOCKS == 1 || !last) send<P>(me, next, to, arrivals + then * P::ARRIVALS);

      if (!(live >> sent_column & 1)) y = {};
      if (me.sender() == 0 && first + sent_column < a.B) {
        store_row(static_cast<Word*>(a.ys) + ys_at + 8 * i, y, D - sent_unit - 8 * i, vectors);
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        if (STATES == 2 && a.cs && inside(i, j)) a.cs[cs_at + int64_t(j) * wide + 8 * i] = c[j];
        if (SAVED > 0 && a.gates && inside(i, j)) {
          SavedWord* gates = static_cast<SavedWord*>(a.gates) + gates_at + int64_t(j) * SAVED * H + 8 * i;
#pragma unroll
          for (int v = 0; v < SAVED; ++v) {
            const float x = values[j][v];
            gates[v * int64_t(H)] = Element::Saved::from_float(v == Cell::UNBOUNDED ? Element::Saved::finite(x) : x);
          }
        }
      }
    }
    gates_at += row_step * SAVED;
    cs_at += row_step * a.directions;
    ys_at += row_step * a.directions;
    if (!last) load_step(t + dt);
    if (P::BLOCKS == 1) device::block_barrier();
  }

#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      if (!inside(i, j)) continue;
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        Word* to = static_cast<Word*>(s ? a.c_last : a.h_last) + (state_row + column + j) * H + head_unit + 8 * i;
        *to = Element::from_float(states[i][j][s]);
      }
    }
  }
}

}  // namespace fastrnn::cluster
