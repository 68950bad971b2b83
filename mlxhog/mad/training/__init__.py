"""One run of a candidate: trained by the protocol, with one worker or several, and scored."""
