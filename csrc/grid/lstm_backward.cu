#include "../launch.h"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::lstm_backward() { return {}; }
