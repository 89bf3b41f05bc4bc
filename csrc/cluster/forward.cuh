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
  static constexpr int SENDERS = P::SENDERS;
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
    if (P::lies_in_shared(i)) {
      store(rest + P::shared_before(i) * P::TILE_BYTES, tile);
    } else {
      w[i - P::shared_before(i)] = tile;
    }
    if (i % WEIGHT_LOADS == WEIGHT_LOADS - 1) device::compiler_fence();
  }
}

// Asks for the first of the tiles in shared memory.
template <class P>
DEVICE void look_ahead(const char* rest, word4 (&ahead)[P::LOOKAHEAD]) {
#pragma unroll
  for (int n = 0; n < P::LOOKAHEAD && n < P::SHARED_TILES; ++n) ahead[n] = load<word4>(rest + n * P::TILE_BYTES);
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
      const int second = i / P::M_TILES % 2, n = P::shared_before(i);
      float (&chain)[4] = chains[second % P::CHAINS][i % P::M_TILES];
      if (P::lies_in_shared(i)) {
        P::Element::mma(chain, ahead[n % P::LOOKAHEAD], now.x[2 * second], now.x[2 * second + 1]);
        if (n + P::LOOKAHEAD < P::SHARED_TILES) {
          ahead[n % P::LOOKAHEAD] = load<word4>(rest + (n + P::LOOKAHEAD) * P::TILE_BYTES);
        }
      } else {
        P::Element::mma(chain, w[i - n], now.x[2 * second], now.x[2 * second + 1]);
      }
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

// Where the shared memory begins of each block that the lane sends to.
template <class P>
DEVICE void find_receivers(const ForwardLane<P>& me, const char* shared, device::remote (&receivers)[P::RECEIVERS]) {
#pragma unroll
  for (int r = 0; r < P::RECEIVERS; ++r) {
    const int block = r * me.SENDERS + me.sender();
    receivers[r] = device::map(shared, block < P::BLOCKS ? block : 0);
  }
}

// Sends a word4 of units of a sequence to every block, to its buffer of the next state and to count on its barrier,
// both given from where shared memory begins.
template <class P>
DEVICE void send(const ForwardLane<P>& me, const word4& units, const device::remote (&receivers)[P::RECEIVERS], int to,
                 int arrival) {
#pragma unroll
  for (int r = 0; r < P::RECEIVERS; ++r) {
    if (P::BLOCKS % me.SENDERS == 0 || r * me.SENDERS + me.sender() < P::BLOCKS) {
      device::store_async(receivers[r] + to, units, receivers[r] + arrival);
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

  // The bit of an item's sequence in a ballot; none where the item lies outside of the batch or the head.
  uint32_t own[ITEMS][COLUMNS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) own[i][j] = inside(i, j) ? 1u << (column + j) : 0;
  }

  // Where the step's rows begin, in elements.
  const int dt = place.backwards ? -1 : 1, t_first = place.backwards ? a.T - 1 : 0;
  const int64_t row = int64_t(t_first) * a.B + first, directed = int64_t(place.direction) * a.T * a.B + row;
  // A block on its own keeps strides and places in registers; one of a cluster computes them while it waits.
  constexpr bool ALONE = P::BLOCKS == 1;
  auto keep = [](int64_t stride) { return ALONE ? device::hide(stride) : stride; };
  const int64_t row_step = keep(int64_t(dt) * a.B * H), gx_step = keep(row_step * G);
  const int64_t ys_step = keep(row_step * a.directions);
  int64_t gates_at = (directed + column) * SAVED * H + head_unit;
  int64_t ys_at = (row + column) * wide + place.direction * H + head_unit;
  int64_t reset_at = int64_t(place.backwards ? a.T - 1 : 1) * a.B + place.asked;

  // What a step reads from memory is asked for when the one before begins: gx, and whether the state is cut that leaves
  // the step. Items that lie outside read what belongs to another, for the loads to need no condition, and drop it.
  const Word* from[COLUMNS];
  int beside[ITEMS];
#pragma unroll
  for (int j = 0; j < COLUMNS; ++j) {
    const int n = first + column + j;
    const int64_t sequence = directed - first + (n < a.B ? n : a.B - 1);
    from[j] = static_cast<const Word*>(a.gx) + sequence * G * H + place.head * D + (unit < D ? unit : D - 1);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) beside[i] = unit + 8 * i < D ? 8 * i : 0;
  uint32_t gx[ITEMS][COLUMNS][G], reset;
  float x[ITEMS][COLUMNS][G];
  uint32_t live, cuts;
  auto load_step = [&](int t, bool is_last) {
    const int64_t on = is_last ? 0 : gx_step;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
      for (int gate = 0; gate < G; ++gate) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) gx[i][j][gate] = from[j][int64_t(gate) * H + beside[i]];
      }
      from[j] += on;
    }
    const int64_t at = ALONE ? reset_at : int64_t(place.backwards ? t : t + 1) * a.B + place.asked;
    reset = place.load_reset(a, place.backwards ? t : t + 1, at);
    reset_at += dt * a.B;
  };
  // What step `t` computes with: of a sequence that has ended nothing, whatever may lie there.
  auto take_step = [&](int t, bool is_last) {
    live = device::ballot(t < place.length);
    cuts = device::ballot(reset != 0 && !is_last);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          x[i][j][gate] = live & own[i][j] ? Element::to_float(static_cast<Word>(gx[i][j][gate])) : 0.f;
        }
      }
    }
  };
  if (a.T > 0) {
    load_step(t_first, a.T == 1);
    if (ALONE) take_step(t_first, a.T == 1);
  }
  start<P>(arrivals);

  device::remote receivers[P::RECEIVERS];
  if (!ALONE) find_receivers<P>(me, shared, receivers);

  word4 ahead[P::LOOKAHEAD], b[P::STATE_PAIRS];
  auto look_at_state = [&](int buffer) {
#pragma unroll
    for (int pair = 0; pair < P::STATE_PAIRS && 2 * pair < P::K_TILES; ++pair) {
      b[pair] = load_state<P>(me, state + buffer * P::STATE_BYTES, 2 * pair);
    }
  };
  if (P::BLOCKS == 1) look_at_state(0);

  // What a step leaves to be stored: ys, as a row's word4 where there are others to send it to, else as it is computed;
  // c; and what is saved, two 16-bit values in a word.
  constexpr int SAVED_WORDS = P::BLOCKS == 1 && sizeof(SavedWord) == 2 && SAVED > 0 ? VALUES / 2 : VALUES;
  word4 rows[ITEMS];
  Word ys[ITEMS][COLUMNS];
  float c[ITEMS][COLUMNS];
  uint32_t saved[ITEMS][COLUMNS][SAVED_WORDS];
  auto publish = [&](int t) {
    const int64_t row_now = int64_t(device::hide(t)) * a.B + first;
    if (!ALONE) {
      ys_at = (row_now + column) * wide + place.direction * H + head_unit;
      gates_at = (int64_t(place.direction) * a.T * a.B + row_now + column) * SAVED * H + head_unit;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (!ALONE && me.sender() == 0 && first + sent_column < a.B) {
        const int u = sent_unit + 8 * i;
        const int64_t at = (row_now + sent_column) * wide + place.direction * H + place.head * D + u;
        store_row(static_cast<Word*>(a.ys) + at, rows[i], D - u, vectors);
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const int64_t at = ys_at + int64_t(j) * wide + 8 * i;
        if (ALONE && own[i][j]) static_cast<Word*>(a.ys)[at] = ys[i][j];
        if (STATES == 2 && a.cs && own[i][j]) a.cs[at] = c[i][j];
        if (SAVED > 0 && a.gates && own[i][j]) {
          SavedWord* gates = static_cast<SavedWord*>(a.gates) + gates_at + int64_t(j) * SAVED * H + 8 * i;
#pragma unroll
          for (int v = 0; v < SAVED; ++v) {
            const uint32_t word = saved[i][j][v * SAVED_WORDS / VALUES];
            gates[v * int64_t(H)] = static_cast<SavedWord>(SAVED_WORDS < VALUES ? word >> v % 2 * 16 : word);
          }
        }
      }
    }
    if (ALONE) {
      if (SAVED > 0) gates_at = keep(gates_at) + row_step * SAVED;
      ys_at = keep(ys_at) + ys_step;
    }
  };

#pragma unroll 1
  for (int step = 0; step < a.T; ++step) {
    const int t = t_first + dt * step, now = step & 1, then = now ^ 1;
    const bool last = step == a.T - 1;
    look_ahead<P>(rest, ahead);
    if (P::BLOCKS > 1 && device::thread() < P::ARRIVALS && !last) {
      device::mbarrier_expect(arrivals + then * P::ARRIVALS + device::thread(), P::STATE_BYTES / P::ARRIVALS);
    }
    // Where it sends to, which is found before the wait.
    const int to =
        device::hide(static_cast<int>(P::BARRIER_BYTES + state_word(sent_unit, sent_column)) + then * P::STATE_BYTES);
    const int arrival =
        device::hide((then * P::ARRIVALS + me.rank * P::ARRIVALS / P::BLOCKS) * static_cast<int>(sizeof(uint64_t)));
    float sums[P::M_TILES][4], gh[ITEMS][COLUMNS][G];
    auto meanwhile = [&] {
      if (!ALONE) return;
      device::schedule_fence(a.B);  // the first products come first
      load_step(t + dt, step + 2 >= a.T);
      if (step > 0) publish(t - dt);
      device::schedule_fence(a.B);  // the loads stay here, a step ahead of their use
    };
    multiply<P>(me, w, rest, state + now * P::STATE_BYTES, arrivals + now * P::ARRIVALS, step >> 1 & 1, sums, ahead, b,
                meanwhile);
    reduce<P>(me, sums, partial + now * P::PARTIAL_BYTES, gh);
    if (!ALONE) take_step(t, last);

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      float h[COLUMNS];
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const bool lives = live & own[i][j];
        float pre[VALUES], values[VALUES], after[STATES];
#pragma unroll
        for (int gate = 0; gate < G; ++gate) {
          if (!Cell::ADDS) gh[i][j][gate] += bias[i][gate];
        }
        Cell::preactivations(x[i][j], gh[i][j], pre);
        Cell::template activated<Element>(pre, values);
        Cell::template update<Element>(values, states[i][j], after);
#pragma unroll
        for (int s = 0; s < STATES; ++s) after[s] = lives ? after[s] : states[i][j][s];
        h[j] = after[0];
        c[i][j] = after[STATES - 1];
#pragma unroll
        for (int s = 0; s < STATES; ++s) states[i][j][s] = cuts & own[i][j] ? 0.f : after[s];
        if (P::BLOCKS == 1) {
          const int k = me.item_unit(i) + me.g;
          char* to = state + then * P::STATE_BYTES + state_word(k / P::WORD_UNITS * P::WORD_UNITS, column + j);
          store(to + k % P::WORD_UNITS * sizeof(Word), Element::operand(Element::from_float(states[i][j][0])));
          ys[i][j] = lives ? Element::from_float(after[0]) : Word(0);
        }
        if (Cell::UNBOUNDED >= 0) {
          float& value = values[Cell::UNBOUNDED >= 0 ? Cell::UNBOUNDED : 0];
          value = Element::Saved::finite(value);
        }
#pragma unroll
        for (int v = 0; v < SAVED_WORDS; ++v) {
          if constexpr (SAVED_WORDS < VALUES) {
            saved[i][j][v] = Element::Saved::pack(values[2 * v], values[2 * v + 1]);
          } else {
            saved[i][j][v] = Element::Saved::from_float(values[v]);
          }
        }
      }
      // What is sent comes first: all blocks wait for it.
      if constexpr (P::BLOCKS > 1) {
        rows[i] = gather_units<P>(me, h);
        word4 next = Element::operand(rows[i]);
        if (cuts >> sent_column & 1) next = {};
        if (!last) send<P>(me, next, receivers, to + 8 * i * P::ROWS * static_cast<int>(sizeof(Word)), arrival);
        if (!(live >> sent_column & 1)) rows[i] = {};
      }
    }
    if (P::BLOCKS == 1) device::block_barrier();
    if (ALONE) {
      look_at_state(then);
      device::schedule_fence(a.B);
      take_step(t + dt, step + 2 >= a.T);
    } else {
      device::schedule_fence(a.B);  // what is sent comes first
      load_step(t + dt, step + 2 >= a.T);
      publish(t);
    }
  }
  if (ALONE && a.T > 0) publish(a.T - 1);

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
