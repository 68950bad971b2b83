"""One run of a candidate: trained by the recipe, with one worker or several, and scored."""
