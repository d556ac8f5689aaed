// SPDX-License-Identifier: Apache-2.0
// A program that does nothing: what the tests share is in the headers that CMakeLists.txt names.
int main() {}
