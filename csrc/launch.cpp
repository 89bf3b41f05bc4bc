#include "launch.h"

#include <cstdlib>
#include <stdexcept>

#include "probe.h"

#define FASTRNN_TEXT_OF(tokens) #tokens
#define FASTRNN_TEXT(macro) FASTRNN_TEXT_OF(macro)

namespace fastrnn {
namespace {

template <class Arguments>
using Instances = std::vector<Instance<Arguments>>;

template <class Arguments, class... Parts>
Instances<Arguments> joined(const Parts&... parts) {
  Instances<Arguments> all;
  (all.insert(all.end(), parts.begin(), parts.end()), ...);
  return all;
}

const Instances<ForwardArguments>& forward_instances() {
  static const auto all = joined<ForwardArguments>(
#ifndef FASTRNN_NO_CLUSTERS
      cluster::lstm_forward(), cluster::gru_forward(), cluster::rnn_tanh_forward(), cluster::rnn_relu_forward(),
#endif
      grid::lstm_forward(), grid::gru_forward(), grid::rnn_tanh_forward(), grid::rnn_relu_forward());
  return all;
}

const Instances<BackwardArguments>& backward_instances() {
  static const auto all = joined<BackwardArguments>(
#ifndef FASTRNN_NO_CLUSTERS
      cluster::lstm_backward(), cluster::gru_backward(), cluster::rnn_tanh_backward(), cluster::rnn_relu_backward(),
#endif
      grid::lstm_backward(), grid::gru_backward(), grid::rnn_tanh_backward(), grid::rnn_relu_backward());
  return all;
}

template <class Arguments>
void launch(const Instances<Arguments>& instances, size_t first, const Request& request, const Arguments& arguments,
            const Target& target) {
  const Plan plan = plan_on(target.device, request);
  if (plan.chosen < 0) throw std::invalid_argument(plan.reason);
  const Instance<Arguments>& instance = instances[static_cast<size_t>(plan.chosen) - first];
  instance.launch(instance.geometry, plan, arguments, target);
}

}  // namespace

const std::vector<Geometry>& compiled() {
  static const std::vector<Geometry> all = [] {
    std::vector<Geometry> geometries;
    for (const auto& instance : forward_instances()) geometries.push_back(instance.geometry);
    for (const auto& instance : backward_instances()) geometries.push_back(instance.geometry);
    return geometries;
  }();
  return all;
}

const char* architectures() { return FASTRNN_TEXT(FASTRNN_ARCHITECTURES); }

std::optional<Only> only_way() {
  const char* text = std::getenv("FASTRNN_CUDA_WAY");
  if (text == nullptr || *text == '\0') return {};
  return parse_only(text);
}

Plan plan_on(int device, const Request& request) { return plan(compiled(), request, limits(device), architectures()); }

void launch_forward(CellKind cell, ElementKind element, const ForwardArguments& arguments, const Target& target) {
  const Request request{Operation::kForward,           cell,        element,
                        arguments.H / arguments.heads, arguments.B, arguments.heads,
                        arguments.directions,          only_way()};
  launch(forward_instances(), 0, request, arguments, target);
}

void launch_backward(CellKind cell, ElementKind element, const BackwardArguments& arguments, const Target& target) {
  const Request request{Operation::kBackward,          cell,        element,
                        arguments.H / arguments.heads, arguments.B, arguments.heads,
                        arguments.directions,          only_way()};
  launch(backward_instances(), forward_instances().size(), request, arguments, target);
}

}  // namespace fastrnn
