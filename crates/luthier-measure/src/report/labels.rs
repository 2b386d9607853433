//! Names beside points, none over another name or point.

/// A box in the chart's units, y downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Area {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
}

impl Area {
    fn overlaps(&self, other: &Area) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn within(&self, outer: &Area) -> bool {
        self.left >= outer.left
            && self.right <= outer.right
            && self.top >= outer.top
            && self.bottom <= outer.bottom
    }
}

/// Width of a letter of a proportional face, as a share of its size; on the wide side.
const LETTER_WIDTH: f64 = 0.6;

/// For each of `points` a text of `texts` (the first of its choices that fits) and the left end and middle height of
/// where it goes, or none where no choice fits. `lines` are crossed only where there is no other room, `inside` bounds the
/// texts, `size` is their height, `radius` the points'.
pub(crate) fn place(
    points: &[(f64, f64)],
    texts: &[Vec<String>],
    lines: &[Area],
    inside: Area,
    size: f64,
    radius: f64,
) -> Vec<Option<(String, f64, f64)>> {
    let around = |&(x, y): &(f64, f64)| Area {
        left: x - radius,
        top: y - radius,
        right: x + radius,
        bottom: y + radius,
    };
    let mut taken: Vec<Area> = points.iter().map(around).collect();
    let mut placed = vec![None; points.len()];
    // All first choices before any second, so that a short form takes no full name's room.
    let choices = texts.iter().map(Vec::len).max().unwrap_or(0);
    for choice in 0..choices {
        for (number, &(x, y)) in points.iter().enumerate() {
            let (None, Some(text)) = (&placed[number], texts[number].get(choice)) else { continue };
            let width = text.chars().count() as f64 * size * LETTER_WIDTH;
            let (beside, above) = (radius + 3.0, radius + size * 0.7);
            let spots = [
                (x + beside, y),
                (x - beside - width, y),
                (x - width / 2.0, y - above),
                (x - width / 2.0, y + above),
                (x + radius, y - above),
                (x + radius, y + above),
                (x - radius - width, y - above),
                (x - radius - width, y + above),
            ];
            let area_at = |(left, middle): (f64, f64)| Area {
                left,
                top: middle - size * 0.6,
                right: left + width,
                bottom: middle + size * 0.6,
            };
            let is_free = |spot: &&(f64, f64)| {
                let area = area_at(**spot);
                area.within(&inside) && !taken.iter().any(|other| area.overlaps(other))
            };
            let is_clear = |spot: &&(f64, f64)| !lines.iter().any(|line| area_at(**spot).overlaps(line));
            let spot = spots.iter().filter(is_free).find(is_clear).or_else(|| spots.iter().find(is_free));
            if let Some(&(left, middle)) = spot {
                taken.push(area_at((left, middle)));
                placed[number] = Some((text.clone(), left, middle));
            }
        }
    }
    placed
}

/// `name`, or its beginning and end around an ellipsis, of at most `letters` letters: names of a family differ at the
/// end.
pub(crate) fn shortened(name: &str, letters: usize) -> String {
    let all: Vec<char> = name.chars().collect();
    if all.len() <= letters {
        return name.to_string();
    }
    let head = (letters - 1) / 2;
    let tail = letters - 1 - head;
    let text = |letters: &[char]| letters.iter().collect::<String>();
    format!("{}\u{2026}{}", text(&all[..head]).trim_end(), text(&all[all.len() - tail..]).trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: Area = Area { left: 0.0, top: 0.0, right: 400.0, bottom: 300.0 };

    proptest::proptest! {
        #[test]
        fn no_label_covers_a_point_or_another_label(
            points in proptest::collection::vec((0.0f64..400.0, 0.0f64..300.0), 1..30),
        ) {
            let texts: Vec<Vec<String>> =
                (0..points.len()).map(|n| vec!["model name".to_string(), n.to_string()]).collect();
            let placed = place(&points, &texts, &[], INSIDE, 12.0, 5.0);
            let areas: Vec<Area> = placed
                .iter()
                .flatten()
                .map(|(text, left, middle)| Area {
                    left: *left,
                    top: middle - 6.0,
                    right: left + text.chars().count() as f64 * 7.0,
                    bottom: middle + 6.0,
                })
                .collect();
            for (number, area) in areas.iter().enumerate() {
                proptest::prop_assert!(area.within(&INSIDE));
                proptest::prop_assert!(areas[..number].iter().all(|other| !area.overlaps(other)));
                let on_point = |&(x, y): &(f64, f64)| {
                    area.overlaps(&Area { left: x - 5.0, top: y - 5.0, right: x + 5.0, bottom: y + 5.0 })
                };
                proptest::prop_assert!(!points.iter().any(on_point));
            }
        }
    }

    #[test]
    fn a_line_is_crossed_only_where_there_is_no_other_room() {
        let line = Area { left: 100.0, top: 99.0, right: 400.0, bottom: 101.0 };
        let wall = Area { left: 0.0, top: 0.0, right: 400.0, bottom: 300.0 };
        let spot = |lines: &[Area]| {
            let placed = place(&[(100.0, 100.0)], &[vec!["adapted".into()]], lines, INSIDE, 12.0, 5.0);
            placed[0].clone().map(|(_, left, _)| left)
        };
        assert!(spot(&[line]).is_some_and(|left| left < 100.0));
        assert_eq!(spot(&[wall]), Some(108.0));
    }

    #[test]
    fn a_lone_point_has_its_full_name_to_the_right() {
        let placed = place(&[(100.0, 100.0)], &[vec!["adapted".into()]], &[], INSIDE, 12.0, 5.0);
        assert_eq!(placed, [Some(("adapted".to_string(), 108.0, 100.0))]);
        assert_eq!(shortened("a long name", 7), "a l\u{2026}ame");
    }
}
