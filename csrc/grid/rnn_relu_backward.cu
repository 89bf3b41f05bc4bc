#include "backward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::rnn_relu_backward() {
  return backward_instances<RnnRelu, FASTRNN_RNN_BACKWARD_SHAPE>();
}
