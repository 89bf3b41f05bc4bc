// The backward recurrence, way 2: a cluster computes eight sequences in one head and direction, all steps.
//
// A block computes the gradients of its own units' gates and multiplies them by its rows of w_hh, which it keeps, most
// of them in registers, transposed as the first operand of the product: the units of the state before are its M, the
// sequences its N. Each block so has a share of the sum for every unit of the head, and sends it to the unit's owner by
// asynchronous stores, which count on a barrier where they arrive. The owner adds the shares up in the order of the
// blocks. There is no barrier of the cluster in the loop, and two buffers of everything: a block sends its shares of a
// step only when it has received those of the step just before from all blocks, which have therefore read those of the
// step before that one; and the warps of a block may be a product apart.
#pragma once

#include "../arguments.h"
#include "../memory.cuh"
#include "../own.cuh"
#include "../place.cuh"
#include "backward_shape.cuh"
#include "tiles.cuh"

namespace fastrnn::cluster {

// Whether a block on its own, all of its weights in registers, computes the places of gates in every step, hidden from
// a compiler that would keep them through the loop: nvcc 13 keeps more than fit, for sm_100 and sm_120, at 128 units.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 900
constexpr bool HIDES_PLACES = true;
#else
constexpr bool HIDES_PLACES = false;
#endif

// A lane's 32 bits of a transposed matrix: the rows of the product are 8 units of the state before, the first of them
// `before`, its columns what 16 bytes hold of gate rows, of which the first is `unit` of the gate whose (D, D) begins
// at `gate`.
template <class Lane>
DEVICE uint32_t load_transposed(const Lane& me, const uint16_t* gate, int unit, int before, int D) {
  const int row = unit + me.g, column = before + 2 * me.q;
  return device::transpose(load_packed(gate + int64_t(row) * D + column, row < D ? D - column : 0, D % 2 == 0));
}

template <class Lane>
DEVICE uint32_t load_transposed(const Lane& me, const uint32_t* gate, int unit, int before, int D) {
  const int row = unit + me.q, column = before + me.g;
  return load_packed(gate + int64_t(row) * D + column, row < D ? D - column : 0, true);
}

// The transposed rows of w_hh (G·D, D) of the block's units to registers and, what does not fit there, to `rest` in
// shared memory.
//
// What goes to shared memory is loaded first, while the registers are free.
template <class P>
DEVICE void load_weights(const BackwardLane<P>& me, const typename P::Word* w_hh, int D, word4 (&w)[P::REGISTER_TILES],
                         char* rest) {
#pragma unroll
  for (int n = 0; n < P::TILES; ++n) {
    const int i = P::TILES - 1 - n;
    const int before = me.tile_unit(i % P::M_TILES), k = i / P::M_TILES * P::TILE_K;
    const int unit = me.rank * P::BLOCK_UNITS + k % P::BLOCK_UNITS;
    const typename P::Word* gate = w_hh + int64_t(u_gate<typename P::Cell>(k / P::BLOCK_UNITS)) * D * D;
    word4 tile;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of the gate rows
      const int u = unit + P::TILE_K / 2 * half;
      tile.x[2 * half] = load_transposed(me, gate, u, before, D);
      tile.x[2 * half + 1] = load_transposed(me, gate, u, before + 8, D);
    }
    tile = P::Element::operand(tile);
    keep_tile<P>(i, tile, w, rest);
    if (n % P::WEIGHT_LOADS == P::WEIGHT_LOADS - 1) device::compiler_fence();
  }
}

// The block's share of w_hhᵀ d for the warp's units. `ahead` has what look_ahead loads. Calls `meanwhile` at tile
// K_MEANWHILE along the gate rows, or at the end where there are fewer.
template <class P, class Meanwhile>
DEVICE void multiply(const BackwardLane<P>& me, const word4 (&w)[P::REGISTER_TILES], const char* rest,
                     const char* gradients, float (&sums)[P::M_TILES][P::LANE_SUMS], word4 (&ahead)[P::LOOKAHEAD],
                     const Meanwhile& meanwhile) {
  float chains[P::CHAINS][P::M_TILES][P::LANE_SUMS] = {};
  word4 next = device::load_matrices(gradients, me.lane);
#pragma unroll
  for (int k = 0; k < P::K_TILES; k += 2) {
    if (k == P::K_MEANWHILE) meanwhile();
    const word4 b = next;
    if (k + 2 < P::K_TILES) next = device::load_matrices(gradients + (k + 2) * P::PRODUCT_BYTES, me.lane);
#pragma unroll
    for (int i = k * P::M_TILES; i < (k + 2) * P::M_TILES && i < P::TILES; ++i) {
      const int m = i % P::M_TILES, own = i / P::M_TILES, second = own % 2;
      float (&chain)[P::LANE_SUMS] = chains[own % P::CHAINS][m];
      multiply_tile<P>(i, w, rest, ahead, b.x[2 * second], b.x[2 * second + 1], chain);
    }
  }
  if (P::K_TILES <= P::K_MEANWHILE) meanwhile();
#pragma unroll
  for (int m = 0; m < P::M_TILES; ++m) {
#pragma unroll
    for (int e = 0; e < P::LANE_SUMS; ++e) {
      sums[m][e] = chains[0][m][e];
#pragma unroll
      for (int chain = 1; chain < P::CHAINS; ++chain) sums[m][e] += chains[chain][m][e];
    }
  }
}

// Sends a lane's sums of each of the warp's tiles to the block that owns their units.
template <class P>
DEVICE void send(const BackwardLane<P>& me, const float (&sums)[P::M_TILES][P::LANE_SUMS], char* partial,
                 uint64_t* arrival) {
  char* to = partial + (me.rank * (P::OWNED_TILES * 32) + me.sent_word()) * sizeof(word4);
#pragma unroll
  for (int m = 0; m < P::M_TILES; ++m) {
    word4 v;
    memcpy(&v, sums[m], sizeof v);
    device::store_async(device::map(to, me.owner(m)), v, device::map(arrival, me.owner(m)));
  }
}

// The sum of all blocks' shares of item `x`.
template <class P>
DEVICE float gather(const BackwardLane<P>& me, int x, const char* partial) {
  constexpr int CHAINS = 4;  // of additions, for their latency
  float sums[CHAINS] = {};
#pragma unroll
  for (int block = 0; block < P::BLOCKS; ++block) {
    const int at = block * (P::BLOCK_UNITS * P::ROWS) + me.received_float(x);
    sums[block % CHAINS] += load<float>(partial + at * sizeof(float));
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class P>
KERNEL(P::THREADS)
backward_kernel(BackwardArguments a) {
  static_assert(P::FITS);
  using Cell = typename P::Cell;
  using Element = typename P::Element;
  using Word = typename P::Word;
  using Saved = typename Element::Saved;
  constexpr int BLOCKS = Cell::BLOCKS, FIRST_U = first_u<Cell>(), STATES = Cell::STATES, SAVED = Cell::SAVED;
  constexpr int INPUTS = Cell::INPUTS, ITEMS = P::ITEMS;
  using Looks = fastrnn::Looks<Cell>;
  using Kept = fastrnn::Kept<Cell>;

  const Place place(a);
  const BackwardLane<P> me;
  const int first = place.first, head = place.head, direction = place.direction, length = place.length;
  const int H = a.H, D = place.D, wide = place.wide;
  const bool backwards = place.backwards;
  const int dt = backwards ? 1 : -1;  // against the direction of the forward
  const int unit = me.rank * P::BLOCK_UNITS + me.unit;
  auto inside = [&](int x) { return first + me.row + me.rows_to(x) < a.B && unit + me.units_to(x) < D; };

  char* shared = device::shared_memory();
  uint64_t* arrivals = reinterpret_cast<uint64_t*>(shared);  // [2]
  char* gradients = shared + P::BARRIER_BYTES;               // [2][G · BLOCK_UNITS / WORD_ROWS][ROWS][WORD_ROWS]
  char* partial = gradients + 2 * P::GRADIENT_BYTES;         // [2][BLOCKS][BLOCK_UNITS · ROWS], see BackwardLane
  char* rest = partial + 2 * P::PARTIAL_BYTES + me.warp * P::SHARED_TILES * P::TILE_BYTES + me.lane * sizeof(word4);

  word4 w[P::REGISTER_TILES];
  load_weights<P>(me, static_cast<const Word*>(direction ? a.w_hh[1] : a.w_hh[0]) + int64_t(head) * P::U_GATES * D * D,
                  D, w, rest);

  // Of every item: the gradient that the step before in this order left for its states, but for the product's share;
  // that share; and whether it counts, which it does not where that step was cut or dead.
  float carried[ITEMS][STATES], through[ITEMS] = {};
  bool flows[ITEMS] = {};
  const int64_t state = (int64_t(direction) * a.B + first + me.row) * H + head * D + unit;
  auto state_at = [&](int x) { return state + me.rows_to(x) * int64_t(H) + me.units_to(x); };
#pragma unroll
  for (int x = 0; x < ITEMS; ++x) {
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      const Word* d_last = static_cast<const Word*>(pick<STATES>(a.d_finals, s));
      carried[x][s] = d_last && inside(x) ? Element::to_float(d_last[state_at(x)]) : 0.f;
    }
  }

  Values<Cell::PARAMETERS> parameters[P::UNIT_ITEMS];
#pragma unroll
  for (int x = 0; x < ITEMS; x += ITEMS / P::UNIT_ITEMS) {
    const int u = unit + me.units_to(x);
    load_parameters<P>(a, direction, head * D + u, u < D, parameters[me.unit_item(x)]);
  }

  // What a step needs from memory is asked for a step ahead, at these places, which are those of the step asked for
  // last: of ys and what is laid out as ys, of dgates, of gates and of inputs. The state that enters a step is what the
  // next one in this order left.
  const int t_first = backwards ? 0 : a.T - 1;
  const int64_t row = int64_t(t_first) * a.B + first + me.row, directed = int64_t(direction) * a.T * a.B + row;
  int64_t ys = row * wide + direction * H + head * D + unit, gates = directed * BLOCKS * H + head * D + unit;
  const int64_t ys_step = int64_t(dt) * a.B * wide, gates_step = int64_t(dt) * a.B * BLOCKS * H;
  auto ys_at = [&](int x) { return ys + me.rows_to(x) * int64_t(wide) + me.units_to(x); };
  int value_step = H;
  auto gate_at = [&](int x, int v) {
    return gates + (me.rows_to(x) * BLOCKS + v) * int64_t(value_step) + me.units_to(x);
  };
  const int kept_row = Kept::row(a.are_preactivations);
  const int64_t kept_step = int64_t(dt) * a.B * kept_row * H, inputs_step = int64_t(dt) * a.B * H;
  int64_t kept = directed * kept_row * H + head * D + unit, inputs_from = directed * H + head * D + unit;
  auto kept_at = [&](int x, int v) {
    return Kept::ALIKE ? gate_at(x, v) : kept + (me.rows_to(x) * kept_row + v) * int64_t(H) + me.units_to(x);
  };
  Word dy[ITEMS], h[ITEMS];  // states: before the step, or after it where only that is looked at
  Values<STATES - 1> d_others[ITEMS], others[ITEMS];
  typename Saved::Word words[ITEMS][ROOM<Kept::MOST>];  // what was saved, or pre-activations
  Word fed[ITEMS][ROOM<INPUTS>];
  uint8_t cut;  // whether the asked sequence is cut where it enters the step
  auto load_step = [&](int step) {
    const int t = t_first + dt * step;
    const uint32_t from_start = device::ballot(masks::starts(step == a.T - 1, t, length, backwards));
    const int entry = masks::entry(t, backwards);
    cut = place.load_reset(a, entry, int64_t(entry) * a.B + place.asked);
#pragma unroll
    for (int x = 0; x < ITEMS; ++x) {
      const bool in = inside(x), starts = from_start >> (me.row + me.rows_to(x)) & 1;
      dy[x] = in && a.d_histories[0] ? static_cast<const Word*>(a.d_histories[0])[ys_at(x)] : Word(0);
      if (Looks::any(0)) {
        const Word* after = static_cast<const Word*>(a.histories[0]) + ys_at(x);
        const Word* before = starts ? static_cast<const Word*>(a.states0[0]) + state_at(x) : after + ys_step;
        const Word* from = Looks::before(0) ? before : after;
        h[x] = in ? *from : Word(0);
      }
#pragma unroll
      for (int s = 1; s < STATES; ++s) {
        d_others[x][s - 1] = in && pick<STATES>(a.d_histories, s)
                                 ? static_cast<const float*>(pick<STATES>(a.d_histories, s))[ys_at(x)]
                                 : 0.f;
        others[x][s - 1] = 0.f;
        if (Looks::before(s)) {
          if (in && starts)
            others[x][s - 1] = Element::to_float(static_cast<const Word*>(pick<STATES>(a.states0, s))[state_at(x)]);
          if (in && !starts)
            others[x][s - 1] = static_cast<const float*>(pick<STATES>(a.histories, s))[ys_at(x) + ys_step];
        } else if (Looks::any(s)) {
          if (in) others[x][s - 1] = static_cast<const float*>(pick<STATES>(a.histories, s))[ys_at(x)];
        }
      }
#pragma unroll
      for (int v = 0; v < Kept::MOST; ++v) {
        const bool is_read = in && Kept::is_read(v, a.are_preactivations);
        words[x][v] = is_read ? static_cast<const typename Saved::Word*>(a.gates)[kept_at(x, v)] : Word(0);
      }
      if constexpr (INPUTS > 0) {
        load_inputs<P>(a, inputs_from + me.rows_to(x) * int64_t(H) + me.units_to(x), in, fed[x]);
      }
    }
  };
  auto load_following = [&](int step) {
    ys += ys_step;
    gates += gates_step;
    kept += kept_step;
    inputs_from += inputs_step;
    if (step < a.T) load_step(step);
  };

  // What the step has of it, as it computes with it.
  Values<SAVED> saved[ITEMS];
  Values<STATES> d_own[ITEMS], entering[ITEMS], left[ITEMS];
  Values<INPUTS> inputs[ITEMS];
  uint32_t live, cuts;
  auto take_step = [&](int step) {
    live = device::ballot(masks::live(t_first + dt * step, length));
    cuts = device::ballot(cut != 0);
#pragma unroll
    for (int x = 0; x < ITEMS; ++x) {
      const int n = me.row + me.rows_to(x);
      d_own[x][0] = Element::to_float(dy[x]);
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        float found = s ? others[x][s ? s - 1 : 0] : 0.f;
        if (s == 0 && Looks::any(0)) found = Element::to_float(h[x]);
        if (s) d_own[x][s] = d_others[x][s ? s - 1 : 0];
        left[x][s] = Looks::both(s) ? entering[x][s] : found;
        entering[x][s] = found;
      }
      if constexpr (INPUTS > 0) take_inputs<P>(fed[x], live >> n & 1, inputs[x]);
#pragma unroll
      for (int v = 0; v < SAVED; ++v) saved[x][v] = Saved::to_float(words[x][v]);
      if (SAVED > 0 && a.are_preactivations) {
        Values<Cell::PREACTIVATIONS> pre;
        Values<STATES> before, after;
#pragma unroll
        for (int s = 0; s < STATES; ++s) before[s] = cuts >> n & 1 ? 0.f : entering[x][s];
#pragma unroll
        for (int v = 0; v < Kept::PRE; ++v) pre[v] = Element::to_float(words[x][v]);
        Cell::template step<Element>(pre, before, parameters[me.unit_item(x)], inputs[x], after, saved[x]);
      }
    }
  };
  constexpr bool ALONE = P::BLOCKS == 1;
  if (a.T > 0) {
#pragma unroll
    for (int x = 0; x < ITEMS; ++x) {
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        const bool there = Looks::both(s) && inside(x);
        entering[x][s] = !there ? 0.f
                         : s    ? static_cast<const float*>(pick<STATES>(a.histories, s))[ys_at(x)]
                                : Element::to_float(static_cast<const Word*>(a.histories[0])[ys_at(x)]);
      }
    }
    load_step(0);
    if (ALONE) {
      take_step(0);
      load_following(1);
    }
  }

  if (P::BLOCKS > 1) {
    if (device::thread() == 0) {
      for (int i = 0; i < 2; ++i) device::mbarrier_init(arrivals + i, 1);
      device::mbarrier_init_fence();
    }
    device::cluster_arrive();
    device::cluster_wait();
  }
  // What the product of `step` gives the items. A block on its own has it already.
  auto receive = [&](int step) {
    if (P::BLOCKS == 1) return;
    device::mbarrier_wait(arrivals + (step & 1), step >> 1 & 1);
#pragma unroll
    for (int x = 0; x < ITEMS; ++x) through[x] = gather<P>(me, x, partial + (step & 1) * P::PARTIAL_BYTES);
  };

  word4 ahead[P::LOOKAHEAD];
#pragma unroll 1
  for (int step = 0; step < a.T; ++step) {
    const int now = step & 1;
    look_ahead<P>(rest, ahead);
    if (!ALONE) {  // before the wait: it needs nothing that arrives
      if (device::thread() == 0) device::mbarrier_expect(arrivals + now, P::PARTIAL_BYTES);
      take_step(step);
      load_following(step + 1);
      device::schedule_fence(a.B);
    }
    if (step > 0) receive(step - 1);
    Word dgates[ITEMS][BLOCKS];
#pragma unroll
    for (int x = 0; x < ITEMS; ++x) {
      const int n = me.row + me.rows_to(x);
      const bool lives = inside(x) && (live >> n & 1), cut_here = cuts >> n & 1;
      if (flows[x]) carried[x][0] += through[x];
      Values<STATES> dafter, before, after, direct;
      Values<BLOCKS> d;
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        dafter[s] = carried[x][s] + d_own[x][s];
        before[s] = cut_here ? 0.f : entering[x][s];
        after[s] = left[x][s];
      }
      Cell::template derivative<Element>(dafter, saved[x], before, after, parameters[me.unit_item(x)], inputs[x], d,
                                         direct);
      flows[x] = lives && !cut_here;
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        if (lives) carried[x][s] = cut_here ? 0.f : direct[s];
      }
#pragma unroll
      for (int v = 0; v < BLOCKS; ++v) {
        dgates[x][v] = lives ? Element::from_float(d[v]) : Word(0);
        const int gate = v - FIRST_U, k = gate * P::BLOCK_UNITS + me.unit + me.units_to(x);
        char* to = gradients + now * P::GRADIENT_BYTES + (k / P::WORD_ROWS * P::ROWS + slot(n)) * sizeof(word4);
        if (gate >= 0 && gate < P::U_GATES) store(to + k % P::WORD_ROWS * sizeof(Word), Element::operand(dgates[x][v]));
      }
    }
    device::block_barrier();
    auto publish = [&] {
#pragma unroll
      for (int x = 0; x < ITEMS; ++x) {
#pragma unroll
        for (int v = 0; v < BLOCKS; ++v) {
          if (inside(x)) static_cast<Word*>(a.dgates)[gate_at(x, v) - gates_step] = dgates[x][v];
        }
      }
    };
    float sums[P::M_TILES][P::LANE_SUMS];
    multiply<P>(me, w, rest, gradients + now * P::GRADIENT_BYTES, sums, ahead, [&] {
      if (!ALONE) return;
      device::schedule_fence(a.B);  // the first products come first
      if (HIDES_PLACES && P::SHARED_TILES == 0) value_step = device::hide(H);
      publish();
      take_step(step + 1);
      load_following(step + 2);
      device::schedule_fence(a.B);  // the loads stay here, a step ahead of their use
    });
    if (ALONE) {
#pragma unroll
      for (int x = 0; x < ITEMS; ++x) through[x] = sums[x / P::LANE_SUMS % P::M_TILES][x % P::LANE_SUMS];
    } else {
      send<P>(me, sums, partial + now * P::PARTIAL_BYTES, arrivals + now);
      device::schedule_fence(a.B);  // what is sent comes first
      publish();
    }
  }

  if (a.T > 0) receive(a.T - 1);
#pragma unroll
  for (int x = 0; x < ITEMS; ++x) {
    if (!inside(x)) continue;
    if (flows[x]) carried[x][0] += through[x];
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      static_cast<Word*>(pick<STATES>(a.d_states0, s))[state_at(x)] = Element::from_float(carried[x][s]);
    }
  }
}

}  // namespace fastrnn::cluster
