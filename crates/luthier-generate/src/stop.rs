//! Stop strings, looked for in the decoded text, across the borders of tokens.

/// Lets text through until a stop string appears; holds back what may be the beginning of one.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    found: bool,
}

impl StopStrings {
    /// Watches for `stops`, none of them empty.
    pub fn new(stops: &[String]) -> StopStrings {
        StopStrings { stops: stops.to_vec(), held: String::new(), found: false }
    }

    /// Whether a stop string has appeared.
    pub fn found(&self) -> bool {
        self.found
    }

    /// Takes the next piece of text and gives what is certain to stand before any stop string. Of several stop
    /// strings in the text, the one that ends first counts, of those the longest, so that the result does not depend
    /// on how the text was cut into pieces.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_match() {
            self.found = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string that counts starts.
    fn first_match(&self) -> Option<usize> {
        self.stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)))
            .min()
            .map(|(_, start)| start)
    }

    /// Bytes at the end of the held text that a stop string may begin with.
    fn longest_beginning(&self) -> usize {
        let beginning = |stop: &String| {
            let borders = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
            borders.filter(|&at| self.held.ends_with(&stop[..at])).max().unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>());
        let mut text: String = pieces.iter().map(|piece| watch.push(piece)).collect();
        text += &watch.finish();
        (text, watch.found())
    }

    #[test]
    fn text_ends_before_the_stop_string_across_pieces() {
        assert_eq!(run(&["\n\nQ:"], &["one\n", "\nQ", ": two"]), ("one".into(), true));
        assert_eq!(run(&["END"], &["EN", "EN", "D."]), ("EN".into(), true));
        assert_eq!(run(&["END"], &["EN", "E"]), ("ENE".into(), false));
    }

    #[test]
    fn what_cannot_be_a_stop_string_is_not_held_back() {
        let mut watch = StopStrings::new(&["né".into()]);
        assert_eq!(watch.push("a n"), "a ");
        assert_eq!(watch.push("ü"), "nü");
    }

    #[test]
    fn without_stop_strings_all_text_passes() {
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    proptest::proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[abé]{0,24}", stops in proptest::collection::vec("[abé]{1,4}", 1..4)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            let whole = run(&stops, &[&text]);
            proptest::prop_assert_eq!(&run(&stops, &chars), &whole);
            if whole.1 {
                proptest::prop_assert!(stops.iter().all(|stop| !whole.0.contains(stop)));
            } else {
                proptest::prop_assert_eq!(whole.0, text);
            }
        }
    }
}
