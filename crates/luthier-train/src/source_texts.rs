//! The texts of a recipe as they lie on the disk, with the sources that name them.

use std::path::Path;

use luthier_text::corpus::Source;

use crate::Result;
use crate::identity::NamedText;
use crate::recipe::Recipe;

/// The recipe's texts.
pub(crate) struct SourceTexts {
    pub(crate) train: Vec<String>,
    pub(crate) validation: Vec<String>,
}

impl SourceTexts {
    /// Reads them all.
    pub(crate) fn read(recipe: &Recipe, read: &dyn Fn(&Path) -> Result<String>) -> Result<SourceTexts> {
        let all =
            |sources: &[Source]| sources.iter().map(|source| read(source.path())).collect::<Result<Vec<_>>>();
        Ok(SourceTexts { train: all(&recipe.data.train)?, validation: all(&recipe.data.validation)? })
    }

    /// Each with its source.
    pub(crate) fn named<'a>(&'a self, recipe: &'a Recipe) -> (Vec<NamedText<'a>>, Vec<NamedText<'a>>) {
        fn named<'a>(sources: &'a [Source], texts: &'a [String]) -> Vec<NamedText<'a>> {
            sources.iter().zip(texts).map(|(source, text)| NamedText { source, text }).collect()
        }
        (named(&recipe.data.train, &self.train), named(&recipe.data.validation, &self.validation))
    }
}
