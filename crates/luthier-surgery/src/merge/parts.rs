//! What the merged models consist of on the disk.

use crate::Input;

/// What the inputs consist of on the disk, each once.
pub(super) struct Parts<'i> {
    pub(super) inputs: Vec<&'i Input>,
    /// By input: the numbers of its parts.
    numbers: Vec<Vec<usize>>,
    of: &'i [Input],
}

impl<'i> Parts<'i> {
    pub(super) fn new(of: &'i [Input]) -> Parts<'i> {
        let mut inputs: Vec<&Input> = Vec::new();
        let mut number = |part: &'i Input| {
            let same =
                |known: &&Input| known.checkpoint.place == part.checkpoint.place && known.label == part.label;
            inputs.iter().position(same).unwrap_or_else(|| {
                inputs.push(part);
                inputs.len() - 1
            })
        };
        let numbers = of.iter().map(|input| input.parts().into_iter().map(&mut number).collect()).collect();
        Parts { inputs, numbers, of }
    }

    pub(super) fn sources(&self, input: usize, name: &str) -> Vec<(usize, String)> {
        let sources = self.of[input].sources(name).into_iter();
        sources.map(|(part, name)| (self.numbers[input][part], name)).collect()
    }

    pub(super) fn unused(&self, input: usize) -> Vec<((usize, String), String)> {
        let unused = self.of[input].unused().into_iter();
        unused.map(|(part, name, reason)| ((self.numbers[input][part], name), reason)).collect()
    }
}
