#include "../launch.h"

std::vector<fastrnn::Instance<fastrnn::BackwardArguments>> fastrnn::grid::gru_backward() { return {}; }
