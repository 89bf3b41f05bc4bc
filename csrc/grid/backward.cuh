// The backward recurrence, way 3: teams of blocks, each with the weights of one head and direction, compute tiles of
// the batch, in every step one after the other.
//
// A block computes the gradients of its own units' gates and stores them to `dgates`. What they leave for the units'
// state before is the product of w_hhᵀ with the gradients of all units' gates, which every block reads there: the
// block's own units are its M, the sequences its N, and it sums over the gate rows of the whole head. Nothing else is
// exchanged (exchange.cuh). The weights stay in registers and shared memory, and the block's warps divide the sum.
#pragma once

#include "../own.cuh"
#include "product.cuh"

namespace fastrnn::grid {

// What a step of an item needs of the tensors, as it is stored, so that nothing waits for its loads.
template <class P>
struct BackwardInputs {
  typename P::Word dy = 0;
  typename P::Word words[ROOM<Kept<typename P::Cell>::MOST>] = {};  // what was saved, or pre-activations
  typename P::Word fed[ROOM<P::Cell::INPUTS>] = {};
  Values<P::Cell::STATES - 1> d_others = {};
  typename P::Word h_before = 0, h_after = 0;
  Values<P::Cell::STATES - 1> before = {}, after = {};  // of the other states
  uint8_t reset = 0;                                    // between the step and the one before in the forward's order
};

// All steps of a chunk. `now`: which buffer the sums are in.
template <class P>
DEVICE void run_chunk(const BackwardArguments& a, const Lane<P>& me, const Memory<P>& memory, const Job& job,
                      const Chunk& chunk, const word4 (&w)[P::REGISTER_TILES], int& now) {
  using Cell = typename P::Cell;
  using Element = typename P::Element;
  using Saved = typename Element::Saved;
  using Word = typename P::Word;
  constexpr int BLOCKS = Cell::BLOCKS, FIRST_U = first_u<Cell>(), STATES = Cell::STATES, SAVED = Cell::SAVED;
  constexpr int INPUTS = Cell::INPUTS;
  constexpr int FLOWS = STATES;  // number of an item: whether the product's share of the gradient counts
  static_assert(sizeof(typename Saved::Word) == sizeof(Word), "gates take as much as preactivations");
  using Looks = fastrnn::Looks<Cell>;
  using Kept = fastrnn::Kept<Cell>;

  const bool backwards = job.backwards;
  auto inside = [&](int tile) { return me.unit < job.D && chunk.first + tile * P::ROWS + me.row < a.B; };
  auto state_at = [&](int tile) {
    return (int64_t(job.direction) * a.B + chunk.first + device::hide(tile) * P::ROWS + me.row) * a.H +
           job.unit(me.unit);
  };

  memory.set_lengths(a, chunk);
#pragma unroll 1
  for (int tile = 0; me.finishes && tile < chunk.tiles; ++tile) {
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      const Word* from = static_cast<const Word*>(pick<STATES>(a.d_finals, s));
      memory.number(tile, s) = from && inside(tile) ? Element::to_float(from[state_at(tile)]) : 0.f;
    }
    memory.number(tile, FLOWS) = 0.f;
  }

  Values<Cell::PARAMETERS> parameters;
  load_parameters<P>(a, job.direction, job.unit(me.unit), me.unit < job.D, parameters);

  // One turn more than there are steps: what the last one leaves for the initial states.
  const int dt = backwards ? 1 : -1, t_first = backwards ? 0 : a.T - 1;  // against the direction of the forward
#pragma unroll 1
  for (int step = 0; step <= a.T; ++step) {
    const int t = t_first + dt * step, entry = masks::entry(t, backwards);
    const bool is_step = step < a.T;
#pragma unroll 1
    for (int tile = 0; tile < chunk.tiles; ++tile) {
      const int first = chunk.first + tile * P::ROWS;
      const int H = device::hide(a.H), direction = device::hide(job.direction), wide = a.directions * H;
      const int head_unit = job.unit(me.unit);

      // What is finished from, ahead of the wait for the other blocks.
      BackwardInputs<P> in;
      if (me.finishes && inside(tile) && is_step) {
        const int64_t at = int64_t(t) * a.B + first + me.row, ys_at = at * wide + direction * H + head_unit;
        const int64_t ys_before = ys_at + int64_t(dt) * a.B * wide;
        const bool starts = masks::starts(step == a.T - 1, t, memory.length(tile, me.row), backwards);
        if (a.d_histories[0]) in.dy = static_cast<const Word*>(a.d_histories[0])[ys_at];
        const Word* ys = static_cast<const Word*>(a.histories[0]);
        if (Looks::before(0))
          in.h_before = starts ? static_cast<const Word*>(a.states0[0])[state_at(tile)] : ys[ys_before];
        if (Looks::after(0)) in.h_after = ys[ys_at];
#pragma unroll
        for (int s = 1; s < STATES; ++s) {
          const float* history = static_cast<const float*>(pick<STATES>(a.histories, s));
          if (pick<STATES>(a.d_histories, s))
            in.d_others[s - 1] = static_cast<const float*>(pick<STATES>(a.d_histories, s))[ys_at];
          if (Looks::after(s)) in.after[s - 1] = history[ys_at];
          if (Looks::before(s)) {
            const Word* start = static_cast<const Word*>(pick<STATES>(a.states0, s));
            in.before[s - 1] = starts ? Element::to_float(start[state_at(tile)]) : history[ys_before];
          }
        }
        const int64_t row = int64_t(direction) * a.T * a.B + at;
#pragma unroll
        for (int v = 0; v < Kept::MOST; ++v) {
          if (!Kept::is_read(v, a.are_preactivations)) continue;
          in.words[v] = static_cast<const Word*>(a.gates)[(row * Kept::row(a.are_preactivations) + v) * H + head_unit];
        }
        load_inputs<P>(a, row * H + head_unit, true, in.fed);
        in.reset = load_reset(a, entry, first + me.row);
      }

      if (step > 0) {
        const int sequence = first + me.g, unit = me.read_unit(0);
        const int64_t row_before = (int64_t(direction) * a.T + t - dt) * a.B + sequence;
        const Word* from = static_cast<const Word*>(a.dgates) + (row_before * BLOCKS + FIRST_U) * H;
        const bool none = sequence >= a.B;
        const Row<Word> row{from + job.unit(unit), H, none ? 0 : job.D - unit, !none, job.vectors};
        float sums[P::M_TILES][4];
        multiply<P>(row, memory, w, sums);
        store_sums<P>(me, sums, memory.sums + now * P::SUM_BYTES);
        device::block_barrier();
      }
      if (me.finishes) {
        float carried[STATES];
#pragma unroll
        for (int s = 0; s < STATES; ++s) carried[s] = memory.number(tile, s);
        if (step > 0) {
          float through[P::M_GATES];
          add_up<P>(me, memory.sums + now * P::SUM_BYTES, through);
          if (memory.number(tile, FLOWS) != 0.f) carried[0] += through[0];
        }
        if (is_step) {
          const int steps = memory.length(tile, me.row);
          const bool lives = masks::live(t, steps), cut_here = masks::cut(in.reset, entry, steps);
          Values<SAVED> saved;
          Values<STATES> dafter, before, after, direct;
          Values<BLOCKS> d;
          Values<INPUTS> inputs;
#pragma unroll
          for (int s = 0; s < STATES; ++s) {
            const int other = s ? s - 1 : 0;
            const float entered = s ? in.before[other] : Element::to_float(in.h_before);
            dafter[s] = carried[s] + (s ? in.d_others[other] : Element::to_float(in.dy));
            before[s] = cut_here ? 0.f : entered;
            after[s] = s ? in.after[other] : Element::to_float(in.h_after);
          }
          take_inputs<P>(in.fed, lives, inputs);
#pragma unroll
          for (int v = 0; v < SAVED; ++v) saved[v] = Saved::to_float(in.words[v]);
          if (SAVED > 0 && a.are_preactivations) {
            Values<Cell::PREACTIVATIONS> pre;
            Values<STATES> again;
#pragma unroll
            for (int v = 0; v < Kept::PRE; ++v) pre[v] = Element::to_float(in.words[v]);
            Cell::template step<Element>(pre, before, parameters, inputs, again, saved);
          }
          Cell::template derivative<Element>(dafter, saved, before, after, parameters, inputs, d, direct);

          // What all blocks wait for comes first.
          const int64_t row = (int64_t(direction) * a.T + t) * a.B + first + me.row;
          Word* dgates = static_cast<Word*>(a.dgates) + row * BLOCKS * H + head_unit;
#pragma unroll
          for (int v = BLOCKS - 1; v >= 0; --v) {
            publish(dgates + int64_t(v) * H, lives ? Element::from_float(d[v]) : Word(0), inside(tile), job.vectors);
          }
#pragma unroll
          for (int s = 0; s < STATES; ++s) {
            if (lives) carried[s] = cut_here ? 0.f : direct[s];
            memory.number(tile, s) = carried[s];
          }
          memory.number(tile, FLOWS) = lives && !cut_here ? 1.f : 0.f;
        } else if (inside(tile)) {
#pragma unroll
          for (int s = 0; s < STATES; ++s) {
            static_cast<Word*>(pick<STATES>(a.d_states0, s))[state_at(tile)] = Element::from_float(carried[s]);
          }
        }
      }
      now ^= 1;
    }
  }
}

template <class P>
KERNEL(P::THREADS)
backward_kernel(BackwardArguments a, Teams teams) {
  using Word = typename P::Word;
  const Lane<P> me(teams);
  const int D = a.H / a.heads;
  const Memory<P> memory(teams, me, D);
  word4 w[P::REGISTER_TILES] = {};
  int now = 0;
#pragma unroll 1
  for (uint64_t number = first_chunk<P>(a, teams, 0); number < first_chunk<P>(a, teams, 1); ++number) {
    const uint32_t chunks = chunks_of_job<P>(a, teams);
    const int of_job = static_cast<int>(number % chunks);
    const Job job = Job::of<P>(a, static_cast<int>(number / chunks));
    if (of_job == 0 || number == first_chunk<P>(a, teams, 0)) {
      const Word* w_hh = static_cast<const Word*>(job.direction ? a.w_hh[1] : a.w_hh[0]);
      w_hh += int64_t(job.head) * P::K_GATES * D * D;
      load_weights<P>(me, memory, w, [&](int gate, int k) {
        const Word* from = w_hh + (int64_t(u_gate<typename P::Cell>(gate)) * D + k) * D;
        return [=](int unit) { return load_vector(from + unit, D, unit < D ? D - k : 0, false); };
      });
    }
    run_chunk<P>(a, me, memory, job, Chunk::of<P>(a, teams, of_job), w, now);
  }
}

}  // namespace fastrnn::grid
