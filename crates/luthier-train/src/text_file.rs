//! Reading the text files that recipes and options name.

use std::path::Path;

use crate::{Error, Result};

/// Refuses what never ends. A pipe ends when its writer does.
pub fn refuse_device(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = std::fs::metadata(path).map_err(Error::io(path))?.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            let what = "is a device; wanted a text file".to_string();
            return Err(Error::Format { path: path.to_path_buf(), what });
        }
    }
    Ok(())
}

/// Reads a text file, without a byte order mark; one that is not UTF-8 is refused with the place of the first bad byte.
pub fn read_text_file(path: &Path) -> Result<String> {
    refuse_device(path)?;
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = String::from_utf8(bytes).map_err(|error| Error::Format {
        path: path.to_path_buf(),
        what: format!("is not UTF-8 from byte {} on; convert it first", error.utf8_error().valid_up_to()),
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
