// The gradient of forward in the dispatcher: what it keeps, and the call of the op backward. That
// op's own gradient is registered in Python (discloss_cuda/_ops.py).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "discriminative_loss.h"

namespace discloss {

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const std::string& name_space, const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((name_space + "::" + name).c_str(), "")
      .typed<Signature>();
}

// kNamespace names the library whose ops are meant.
template <const char* kNamespace>
class Autograd : public torch::autograd::Function<Autograd<kNamespace>> {
  using Variables = torch::autograd::variable_list;
  using Context = torch::autograd::AutogradContext;

 public:
  // The kernel for the key Autograd.
  static ForwardTuple kernel(const ForwardInputs& in) {
    TORCH_CHECK_NOT_IMPLEMENTED(!in.embeddings._fw_grad(0).defined(), kNamespace,
                                "::forward has no forward-mode derivative: call "
                                "discriminative_loss, which has, uncompiled");
    ForwardTuple results = below_autograd(in);
    if (!at::GradMode::is_enabled() || !in.embeddings.requires_grad()) {
      return results;
    }
    const Variables terms = Autograd::apply(in.embeddings, &in, &results);
    std::get<0>(results) = terms[0];
    std::get<1>(results) = terms[1];
    std::get<2>(results) = terms[2];
    std::get<3>(results) = terms[3];
    return results;
  }

  // Keeps what backward needs and gives loss and terms, which alone have a gradient, to the graph.
  // Only a variable of the graph is an argument by itself: each costs something in every call.
  static Variables forward(Context* context, const at::Tensor& embeddings, const ForwardInputs* in,
                           const ForwardTuple* results) {
    const auto& [loss, variance, distance, regularization, slots, instances, counts, means, pull,
                 push] = *results;
    context->set_materialize_grads(false);
    context->save_for_backward({embeddings, in->offsets.value_or(at::Tensor()), slots, instances,
                                counts, means, pull, push});
    const auto numbers = in->parameters.numbers();
    context->saved_data["parameters"] = std::vector<double>(numbers.begin(), numbers.end());
    return {loss, variance, distance, regularization};
  }

  static Variables backward(Context* context, const Variables& gradients) {
    const auto given = [](const at::Tensor& tensor) {
      return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
    };
    const std::array<std::optional<at::Tensor>, 4> of_terms = {
        given(gradients[0]), given(gradients[1]), given(gradients[2]), given(gradients[3])};
    Variables of_inputs(3);  // one for each argument of forward
    if (of_terms[0] || of_terms[1] || of_terms[2] || of_terms[3]) {
      static const auto op = find_op<BackwardFunction>(kNamespace, "backward");
      // First of all: a hook that unpacks a saved tensor may run anything, forward included.
      const Variables saved = context->get_saved_variables();
      // Where no second derivative is asked for, its registration, in Python, need not be called.
      std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
      if (!at::GradMode::is_enabled()) {
        guard.emplace();
      }
      const auto numbers = context->saved_data["parameters"].toDoubleVector();
      const auto offsets = given(saved[1]);
      of_inputs[0] = call_backward(
          op, {of_terms[0], of_terms[1], of_terms[2], of_terms[3], saved[0], offsets, saved[2],
               saved[3], saved[4], saved[5], saved[6], saved[7], parameters_of(numbers)});
    }
    return of_inputs;
  }

 private:
  static ForwardTuple below_autograd(const ForwardInputs& in) {
    static const auto op = find_op<ForwardFunction>(kNamespace, "forward");
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(op, in);
  }
};

}  // namespace discloss
