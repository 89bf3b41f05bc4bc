#include "backward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::rnn_tanh_backward() {
  return backward_instances<RnnTanh, FASTRNN_RNN_BACKWARD_SHAPE>();
}
