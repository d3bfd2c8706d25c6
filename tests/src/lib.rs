//! Nothing here: the tests of this package drive the real programs.
