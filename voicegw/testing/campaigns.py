"""Composed scenarios in virtual time, `voicegw simulate --campaign`: of the machines alone, or of whole clients."""

from __future__ import annotations

from voicegw.testing import client_campaigns, machine_campaigns
from voicegw.testing.campaign import CampaignRun

CAMPAIGNS = tuple(sorted((*machine_campaigns.STORIES, *client_campaigns.STORIES)))


def run_campaign(campaign: tuple[str, int]) -> CampaignRun:
    """One campaign, by its name and its seed; what does not hold is in the run, and is not raised."""
    name, seed = campaign
    play = machine_campaigns.play if name in machine_campaigns.STORIES else client_campaigns.play
    return play(name, seed)
