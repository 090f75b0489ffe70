//! Files that a module was granted to read. The kernel is who lets it: they are the only ones in its cage.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{ModuleError, Status};

/// Opens a file of the grant `fs.read` (or one in a folder of it) for reading. Any other is not in the module's cage, and is refused as such; so is
/// one that the module's user may not read.
///
/// # Errors
/// `not-granted`, or `file-unreadable` with the kernel's reason.
pub fn open_granted(path: impl AsRef<Path>) -> Result<File, ModuleError> {
    let path = path.as_ref();
    File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => {
            let detail = format!("fs.read of {}: not granted, or not to be read by this module's user", path.display());
            ModuleError::new(Status::Forbidden, "not-granted", detail)
        }
        _ => ModuleError::new(Status::Internal, "file-unreadable", format!("{}: {error}", path.display())),
    })
}
