// The ops' schemas, forward's gradient, and the Python module that carries them. Backends register
// themselves.
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_cpp_function.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <string>
#include <typeinfo>
#include <vector>

#include "loss/autograd.h"
#include "schemas.h"

namespace discloss {

inline constexpr char kNamespace[] = "discloss_cuda";

// What Python's arguments are read into.
template <typename T>
struct FromPython {
  using type = T;
};
template <typename T>
struct FromPython<at::ArrayRef<T>> {
  using type = std::vector<T>;
};
template <>
struct FromPython<c10::SymInt> {
  using type = int64_t;
};

// The op forward of a namespace, called without the boxes of torch.ops: those take 10 us, a tenth
// of the loss of a small image. Everything else about the call is the dispatcher's.
template <typename Signature>
class DirectCall;

template <typename... Arguments>
class DirectCall<ForwardTuple(Arguments...)> {
 public:
  explicit DirectCall(const std::string& name_space)
      : op_(find_op<ForwardFunction>(name_space, "forward")) {}

  // The first `count` of loss, variance, distance, regularization.
  std::vector<at::Tensor> terms(
      int64_t count, const typename FromPython<std::decay_t<Arguments>>::type&... arguments) const {
    const ForwardTuple results = op_.call(arguments...);
    const auto& [loss, variance, distance, regularization, slots, instances, counts, means, pull,
                 push] = results;
    return count == 1 ? std::vector<at::Tensor>{loss}
                      : std::vector<at::Tensor>{loss, variance, distance, regularization};
  }

 private:
  c10::TypedOperatorHandle<ForwardFunction> op_;
};

using DirectForward = DirectCall<ForwardFunction>;

// What the grad_fn of a result is called; else it has the name of a template with its arguments.
void name_grad_fn(const char* name) {
  using namespace torch::autograd;
  static PyTypeObject type;
  static PyGetSetDef properties[] = {THP_FUNCTION_DEFAULT_PROPERTIES,
                                     {nullptr, nullptr, nullptr, nullptr, nullptr}};
  static PyMethodDef methods[] = {
      {"_register_hook_dict", THPCppFunction_register_hook_dict, METH_O, nullptr},
      {"register_hook", THPCppFunction_register_hook, METH_O, nullptr},
      {"register_prehook", THPCppFunction_register_prehook, METH_O, nullptr},
      {"name", THPCppFunction_name, METH_NOARGS, nullptr},
      {"_sequence_nr", THPCppFunction_sequence_nr, METH_NOARGS, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  _initFunctionPyTypeObject(type, name, properties, methods);
  registerCppFunction(typeid(CppNode<discloss::Autograd<kNamespace>>), &type);
}

}  // namespace discloss

TORCH_LIBRARY(discloss_cuda, library) { discloss::define_schemas(library); }

TORCH_LIBRARY_IMPL(discloss_cuda, Autograd, library) {
  library.impl("forward",
               TORCH_FN(discloss::flat_forward<discloss::Autograd<discloss::kNamespace>::kernel>));
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled ops of discloss_cuda; importing it registers torch.ops.discloss_cuda.";
  pybind11::class_<discloss::DirectForward>(module, "DirectForward")
      .def(pybind11::init<const std::string&>())
      .def("terms", torch::wrap_pybind_function_no_gil(&discloss::DirectForward::terms));
  discloss::name_grad_fn("DiscriminativeLossBackward");
  module.attr("built_for_torch") = TORCH_VERSION;
  module.attr("with_cuda") = static_cast<bool>(DISCLOSS_WITH_CUDA);
  module.attr("cuda_architectures") = DISCLOSS_CUDA_ARCHITECTURES;
  module.attr("cuda_version") = DISCLOSS_CUDA_VERSION;
}
