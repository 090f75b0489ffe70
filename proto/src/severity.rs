//! How bad it is that a condition of health is not in order: a node and a directory say it in the same words (`openred.admin.v1`, `/health`).

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Somebody should look.
    Warning,
    /// Something does not work.
    Error,
}

impl Severity {
    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
