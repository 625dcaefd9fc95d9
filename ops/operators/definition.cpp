#include "operators/definition.h"

#include <limits>

#include "core/error.h"
#include "ort/abi.h"

namespace onnx_moe {

namespace {

// A function's statics, so that the tables exist when other statics are made.
struct Tables {
#include "operator_definitions.inc"
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

const char* operator_domain() { return tables().kDomain; }

int operator_domain_version() { return tables().kDomainVersion; }

const OperatorDefinition& operator_definition(const std::string& name) {
  for (const OperatorDefinition& definition : tables().kOperators) {
    if (definition.name == name) return definition;
  }
  fail("operator ", name, " is not defined");
}

}  // namespace onnx_moe
