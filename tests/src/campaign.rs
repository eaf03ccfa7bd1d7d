//! What decides how long a test tries.

/// The number in an environment variable.
///
/// # Panics
/// If something else is in it.
pub fn number_of(variable: &str, otherwise: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return otherwise };
    text.parse().unwrap_or_else(|error| panic!("{variable} is {text:?}: {error}"))
}

/// How many rounds a test is to have: `AGENTFS_TEST_ROUNDS`.
///
/// # Panics
/// If that is no number.
pub fn rounds(otherwise: u64) -> u64 {
    number_of("AGENTFS_TEST_ROUNDS", otherwise)
}
