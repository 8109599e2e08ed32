//! What a rule excepts. An exception that nothing needs any more is a failure, so that the lists stay true.

use std::collections::BTreeMap;

/// Exceptions of one rule: (file, what), and whether it was needed.
#[derive(Debug)]
pub(crate) struct Exceptions(BTreeMap<(&'static str, &'static str), bool>);

impl Exceptions {
    /// From a list of (file, what, why).
    pub(crate) fn new(list: &[(&'static str, &'static str, &'static str)]) -> Self {
        assert!(list.iter().all(|(.., why)| !why.is_empty()), "an exception needs its reason");
        Self(list.iter().map(|(path, what, _)| ((*path, *what), false)).collect())
    }

    /// Whether this is excepted.
    pub(crate) fn cover(&mut self, path: &str, what: &str) -> bool {
        let found = self.0.iter_mut().find(|((excepted, thing), _)| *excepted == path && *thing == what);
        found.is_some_and(|(_, needed)| {
            *needed = true;
            true
        })
    }

    /// Those that were not needed.
    pub(crate) fn needless(&self) -> impl Iterator<Item = String> {
        let unused = self.0.iter().filter(|(_, needed)| !**needed);
        unused.map(|((path, what), _)| format!("{path}: the exception for {what} is not needed any more"))
    }
}
