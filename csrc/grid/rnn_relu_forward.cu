#include "forward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::ForwardArguments>> fastrnn::grid::rnn_relu_forward() {
  return forward_instances<RnnRelu, FASTRNN_RNN_FORWARD_SHAPE>();
}
