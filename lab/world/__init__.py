"""The world of real pictures: emoji of six open sets, drawn into scenes whose labels and masks are exact."""
