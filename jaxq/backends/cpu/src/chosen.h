// The kernels of the instruction set in use.
#pragma once
#include "kernels.h"

namespace jaxq {

const Kernels& chosen_kernels();

}  // namespace jaxq
