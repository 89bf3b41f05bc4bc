#include "backward_instances.cuh"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::lstm_backward() {
  return backward_instances<Lstm, FASTRNN_LSTM_BACKWARD_SHAPE>();
}
